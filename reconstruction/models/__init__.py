"""Networks, one file each (the only room beside training and the torch engine that imports torch)."""

MODELS: dict[str, str] = {
    "two_stage": "lowdose.reconstruction.models.two_stage:TwoStageGenerator",
    "compact": "lowdose.reconstruction.models.compact:CompactGenerator",
    "one_stage": "lowdose.reconstruction.models.one_stage:OneStageGenerator",
}
"""Every network an engine file can name: name -> "module:Class"; called without arguments it is as published."""
