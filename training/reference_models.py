"""Reference models: published networks with weights as before training, to measure runtimes on (imports torch)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import torch
from platformdirs import user_cache_path

from lowdose.reconstruction.engine import EngineInfo
from lowdose.reconstruction.engine_file import Card, EngineFileError, ModelSpec, read_engine_file
from lowdose.reconstruction.models import MODELS
from lowdose.reconstruction.models.layers import initialise_from_example, uniform_example
from lowdose.training.export import export_engine

if TYPE_CHECKING:
    from pathlib import Path

    from lowdose.reconstruction.engine_file import EngineFile

REFERENCE_MODELS: dict[str, EngineInfo] = {
    "two_stage": EngineInfo(
        name="two_stage",
        version="untrained-1",
        digest="",
        precision="FP16",
        task="complete",
        scale=1,
        channels=("nearest",),
        normalisation="min_max",
        target="blurred_5x5",
        size_multiple=32,
        halo_px=20,
        keeps_measured=False,
        uncertainty_kind="none",
    ),
}
"""What they are and want: name of a network -> info."""


def reference_model(name: str, folder: Path | None = None) -> EngineFile:
    """Return a reference model's engine file, made when there is none yet (half a minute, hundreds of megabytes).

    Parameters
    ----------
    name : str
        A row of `REFERENCE_MODELS`.
    folder : Path, optional
        Where it is kept; the user's cache by default.
    """
    info = REFERENCE_MODELS[name]
    folder = folder or user_cache_path("lowdose") / "models"
    path = folder / f"{name}-{info.version}.onnx"
    if path.exists():
        try:
            return read_engine_file(path)
        except EngineFileError:  # an older version's, or damaged: made again
            pass
    folder.mkdir(parents=True, exist_ok=True)
    module, _, cls = MODELS[name].partition(":")
    torch.manual_seed(0)
    network = getattr(import_module(module), cls)()
    initialise_from_example(network, uniform_example(len(info.channels), size=256))
    card = Card(info, opset=0, outputs=1, gmac_512=0.0, model=ModelSpec(name, network.folded().options))
    return export_engine(network, path, card, precision="FP16")
