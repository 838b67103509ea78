"""Exchangeable methods that complete a sparse frame, one file each."""

ENGINES: dict[str, str] = {
    "nearest": "lowdose.reconstruction.engines.classical_engine:NearestEngine",
    "linear": "lowdose.reconstruction.engines.classical_engine:LinearEngine",
}
"""Every engine: name -> "module:Class", imported when it is chosen."""

AUTO = "auto"
"""Stands for the best engine installed."""
