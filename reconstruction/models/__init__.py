"""Networks, one file each (the only room beside training and the torch engine that imports torch)."""

MODELS: dict[str, str] = {
    "two_stage": "lowdose.reconstruction.models.two_stage:TwoStageGenerator",
}
"""Every network an engine file can name: name -> "module:Class"; called without arguments it is as published."""
