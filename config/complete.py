"""`lowdose complete`: a sparsely measured picture file, completed, as files that other programs open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from lowdose.acquisition.exporting import FORMATS, LAYERS, ExportFrame, ExportPlan, Layer, export_frames
from lowdose.acquisition.recording import versions
from lowdose.config.engines import build_engine
from lowdose.config.errors import ConfigError
from lowdose.config.options import pattern_mapping
from lowdose.config.registry import make_pattern
from lowdose.config.schema import StageSettings
from lowdose.config.session_export import require_name, require_place
from lowdose.reconstruction.completion import Completed, completed
from lowdose.reconstruction.engines.classical_engine import LinearEngine
from lowdose.scan_patterns.checks import nearest_name, printable
from lowdose.scan_patterns.grid import ScanGrid
from lowdose.simulator.sources import read_image
from lowdose.training.examples import blurred

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from lowdose.reconstruction.engine import EngineInfo, Target

LOSSY_SUFFIXES = (".jpg", ".jpeg")
DWELL_TIME_US = 1.0
"""Of positions that only choose pixels."""
ESTIMATES: dict[Target, str] = {
    "sharp": "",
    "blurred_5x5": ", which estimates the picture blurred 5×5 (σ 2.5)",
    "blurred_3x3": ", which estimates the picture blurred 3×3 (σ 1.5)",
}


@dataclass(frozen=True, slots=True)
class Measured:
    """What says which pixels of a picture were measured; by default NaN marks the others.

    Parameters
    ----------
    mask : Path or None
        A picture of the same size, 0 or NaN = not measured.
    pattern, coverage, true_coverage : str or None
        A scan pattern and how much of the picture it visits: tries the completion of a whole picture.
    """

    mask: Path | None = None
    pattern: str | None = None
    coverage: str | None = None
    true_coverage: str | None = None

    def of(self, path: Path, values: NDArray[Any], grid: ScanGrid) -> NDArray[np.bool_]:
        """Return the mask of a picture; ConfigError if there is none."""
        if self.mask is not None and self.pattern is not None:
            raise ConfigError("give either --mask or --pattern, not both")
        if self.pattern is None and (self.coverage or self.true_coverage):
            raise ConfigError("--coverage needs the --pattern it is of, such as --pattern spiral --coverage 1/20")
        if self.mask is not None:
            return _mask_file(self.mask, values.shape)
        if self.pattern is not None:
            mapping = pattern_mapping({}, self.pattern, self.coverage, self.true_coverage)
            pattern = make_pattern(mapping, grid, local=True)
            first, *_ = pattern.paths(grid, dwell_time_us=DWELL_TIME_US, rng=np.random.default_rng(0))
            return first.mask
        if values.dtype.kind != "f" or not np.isnan(values).any():
            raise ConfigError(
                f"nothing says which pixels of {path} were measured: "
                "mark the others by NaN, or give --mask or --pattern"
            )
        known: NDArray[np.bool_] = ~np.isnan(values)
        return known


def run_complete(path: Path, measured: Measured, *, engine: str, form: str, out: Path | None) -> int:
    """Complete a picture and write it with what was measured; return the exit code.

    Raises
    ------
    ConfigError, SpecimenFileError, ValueError
        If an option or a file cannot be used.
    ExportError, RuntimeError
        If it cannot be written, or the engine fails.
    """
    if form not in FORMATS:
        raise ConfigError(f"unknown --format '{form}': {nearest_name(form, FORMATS)}")
    require_name(path)
    out = out or path.with_name(f"{path.stem}-completed{FORMATS[form][0]}")
    require_place(out, form)
    stored = read_image(path, 0)
    if stored.n_images != 1:
        raise ConfigError(f"{path} holds {stored.n_images} images: expected one, export it alone")
    rows, cols = stored.values.shape
    pixel_size_nm = stored.facts.pixel_size_nm
    grid = ScanGrid((rows, cols)) if pixel_size_nm is None else ScanGrid((rows, cols), pixel_size_nm)
    mask = measured.of(path, stored.values, grid)
    with Console(stderr=True).status(f"completing {rows} x {cols} pixels"):
        done = completed(stored.values, mask, engine=build_engine(StageSettings(complete=engine)))
    plan = _plan(path, grid, done.image.shape[0] // rows, done.info, calibrated=pixel_size_nm is not None)
    layers: dict[Layer, NDArray[Any]] = {
        "sparse": np.where(mask, stored.values, 0)[None].astype(np.float32),
        "mask": mask[None].astype(np.uint8),
        "completed": done.image[None],
        "uncertainty": done.uncertainty[None],
    }
    n = int(mask.sum())
    frame = ExportFrame(frame_index=0, samples_used=n, positions=n, t_s=None, engine=plan.engines, layers=layers)
    export_frames(out, form, plan, [frame])
    print(
        f"wrote {printable(str(out))}: {n / mask.size:.2%} measured, completed by {plan.engines}"
        f"{ESTIMATES[done.info.target]}"
    )
    if measured.pattern is not None and done.image.shape == mask.shape:
        print(_errors(stored.values, mask, done))
    return 0


def _errors(truth: NDArray[Any], mask: NDArray[np.bool_], done: Completed) -> str:
    """Return how far off a completion is from the whole picture it was tried on, for people."""
    linear = completed(truth, mask, engine=LinearEngine(), maps=done.maps).image
    targets = {"the picture": truth, "the picture blurred 5×5": blurred(truth.astype(np.float32), "blurred_5x5")}
    found = {name: (_rms(done.image, target), _rms(linear, target)) for name, target in targets.items()}
    return "RMS error against " + ", ".join(
        f"{name} {error:.4g}" + (f" ({error / of_linear:.2f} of linear infill's)" if of_linear > 0 else "")
        for name, (error, of_linear) in found.items()
    )


def _rms(image: NDArray[np.float32], target: NDArray[Any]) -> float:
    return float(np.sqrt(np.nanmean((image.astype(np.float64) - target) ** 2)))


def _mask_file(path: Path, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    stored = read_image(path, 0)
    if stored.n_images != 1:
        raise ConfigError(f"--mask {path} holds {stored.n_images} images: expected one, export it alone")
    if path.suffix.lower() in LOSSY_SUFFIXES:
        raise ConfigError(f"--mask {path} is JPEG, which leaves no pixel 0: store the mask as PNG, TIFF or NPY")
    mask = stored.values
    if mask.shape != shape:
        raise ConfigError(f"--mask {path} has {mask.shape} pixels, the picture {shape}: they must be of one size")
    measured: NDArray[np.bool_] = (mask != 0) & ~np.isnan(mask)
    return measured


def _plan(path: Path, grid: ScanGrid, scale: int, engine: EngineInfo, *, calibrated: bool) -> ExportPlan:
    unknown = (
        {} if calibrated else {"pixel_size_nm": "not known: the file tells none that is alike along rows and columns"}
    )
    told = engine.uncertainty_kind != "none"
    return ExportPlan(
        grid=grid,
        scale=scale,
        channels=("image",),
        layers=LAYERS if told else ("sparse", "mask", "completed"),
        n_frames=1,
        engines=engine.name,
        uncertainty_kind=engine.uncertainty_kind,
        values_unit="",
        metadata={
            "program": f"lowdose {versions()['lowdose']}",
            "picture": printable(path.name),
            "engine_digest": engine.digest,
            "engine_target": engine.target,
            **unknown,
        },
        calibrated=calibrated,
    )
