"""`lowdose session export`: what is told of the frames, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import zarr

from lowdose.acquisition.exporting import FORMATS, POINT_FORMATS
from lowdose.acquisition.frames import DenseFrame, EngineStamp
from lowdose.acquisition.messages import SampleBlock, ScanStart
from lowdose.acquisition.recording import SessionWriter
from lowdose.config.errors import ConfigError
from lowdose.config.session_export import make_selection, run_export
from lowdose.scan_patterns import ScanGrid, ScanPath

if TYPE_CHECKING:
    from collections.abc import Callable

    Record = Callable[..., Path]

GRID = ScanGrid((16, 16), 0.1)
PATH = ScanPath(GRID, np.argwhere(np.indices(GRID.shape).sum(axis=0) % 3 == 0), 1.0)
START = ScanStart("scan", (PATH,), {"name": "own"}, ("HAADF",), 1.0, 25.0, 200.0, 0, None, 1_700 * 10**15, 0)
FRAMES = (0, 1, 5)
"""Others were lost."""


def block(frame: int, first: int = 0, n: int = len(PATH), start: ScanStart = START) -> SampleBlock:
    counts = np.full((1, n), 10 + frame, np.uint16)
    t_ns = 250_000_000 * frame + 1_000 * first
    return SampleBlock("scan", start.paths[0].digest, frame, first, counts, frame, t_ns, t_ns + 1_000 * n, 0)


def dense(frame: int, engine: str, kind: Any = "calibrated") -> DenseFrame:
    image = np.ones((1, *GRID.shape), np.float32)
    return DenseFrame(
        grid=GRID,
        image=image,
        uncertainty=image,
        uncertainty_kind=kind,
        measured=image,
        hits=PATH.hits,
        scale=1,
        scan_id="scan",
        path_digest=PATH.digest,
        frame_index=frame,
        complete=True,
        samples_used=len(PATH),
        channels=("HAADF",),
        engines=(EngineStamp(engine, "", "FP32"),),
        dropped=0,
        gaps=0,
        times_ns={"first_sample": 250_000_000 * frame},
    )


@pytest.fixture
def record(tmp_path: Path) -> Record:
    """Return a function that writes a session of a scan, as it began and what came of it."""

    def write(*messages: Any, **changes: Any) -> Path:
        file = tmp_path / "session.mcap"
        start = replace(START, **changes)
        with SessionWriter(file, wall_clock=lambda: 1_700 * 10**15) as writer:
            for message in (start, *(messages or [block(frame, start=start) for frame in FRAMES])):
                writer.write(message)
        return file

    return write


def export(file: Path, form: str, *what: str, frames: str | None = None, engine: str = "auto") -> Path:
    out = file.with_name("out")
    run_export(file, form, make_selection(what, None, frames, engine), out)
    return out


# --- what is told ---------------------------------------------------------------------------------------------------


def test_all_engines_that_completed_recorded_frames_are_named_and_the_weakest_uncertainty(record: Record) -> None:
    made = [dense(0, "nearest", "placeholder"), *(dense(k, "net\x1b[31m\0") for k in (1, 5))]
    file = record(*(block(k) for k in FRAMES), *made)
    group = zarr.open_group(export(file, "zarr", "completed", "uncertainty", engine="recorded"), mode="r")
    label = group["completed"].attrs["label"]
    assert "completed by net?[31m? (2 of 3 frames), nearest (1 of 3 frames)" in label
    assert "(placeholder)" in group["uncertainty"].attrs["label"]


def test_only_the_frames_that_are_exported_count(record: Record) -> None:
    file = record(block(0), dense(0, "nearest", "none"), dense(1, "net"))
    group = zarr.open_group(export(file, "zarr", "uncertainty", "completed", frames="1", engine="recorded"), mode="r")
    assert "completed by net: inferred" in group["completed"].attrs["label"]
    assert "(calibrated)" in group["uncertainty"].attrs["label"]


def test_an_uncertainty_that_some_frames_have_not_is_not_exported(record: Record) -> None:
    file = record(block(0), dense(0, "net"), dense(1, "other", "none"))
    with pytest.raises(ConfigError, match="the engine tells none of every frame"):
        export(file, "zarr", "uncertainty", engine="recorded")


def test_a_frame_that_the_engine_could_not_complete_is_told(record: Record) -> None:
    file = record(block(0), block(1, n=40))  # without linear infill for the frame with a hole
    group = zarr.open_group(export(file, "zarr", engine="linear"), mode="r")
    assert "completed by linear, or by infill in the frames that say so" in group["completed"].attrs["label"]
    assert {frame["engine"] for frame in group.attrs["frames"]} <= {"linear", "nearest"}


@pytest.mark.parametrize(("frames", "frame_time_s"), [(None, 0.625), ("0:2", 0.25), ("1:", 1.0), ("5", 1.0)])
@pytest.mark.parametrize("engine", ["nearest", "recorded"])
def test_the_frame_time_is_that_of_the_frames_exported(
    record: Record, engine: str, frames: str | None, frame_time_s: float
) -> None:
    file = record(*(block(k) for k in FRAMES), *(dense(k, "net") for k in FRAMES))
    group = zarr.open_group(export(file, "zarr", engine=engine, frames=frames), mode="r")
    assert group["completed"].attrs["frame_time_s"] == pytest.approx(frame_time_s)


# --- what a file may hold -------------------------------------------------------------------------------------------

ODD = {"bytes": {b"x": 1}, "nan": float("nan"), "mixed": [1, "x", None], "a/b": {"x": 1}, "a_b": {"x": 1}, ".": {}}


@pytest.mark.parametrize("form", [*FORMATS, *POINT_FORMATS])
def test_a_pattern_may_have_any_parameters(record: Record, form: str) -> None:
    assert export(record(pattern=ODD), form).exists()


def test_metadata_is_json_whatever_the_file_holds(record: Record) -> None:
    out = export(record(pattern=ODD, energy_kev=float("nan")), "tiff", "mask")
    described = json.loads((out / "metadata.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert described["energy_kev"] is None
    assert described["pattern"]["nan"] is None


def test_points_and_pictures_have_the_same_samples(record: Record) -> None:
    half = len(PATH) // 2
    late, doubled = block(0, half, len(PATH) - half), block(1, 0, half)
    file = record(block(0, 0, half), block(1, 0, half), doubled, late, block(1, half, len(PATH) - half))
    points = np.load(export(file, "npy"), allow_pickle=False)
    assert np.bincount(points["frame"].astype(int)).tolist() == [half, len(PATH)]
    file.with_name("out").unlink()
    group = zarr.open_group(export(file, "zarr", "sparse"), mode="r")
    assert [frame["samples_used"] for frame in group.attrs["frames"]] == [half, len(PATH)]
    file.with_name("out").rename(file.with_name("pictures"))
    points = np.load(export(file, "npy", frames="0"), allow_pickle=False)
    assert len(points) == half  # the late block stays refused though frame 1 is left out


@pytest.mark.parametrize("dwell_time_us", [float("inf"), 1e308, 1e-300])
def test_a_dwell_time_that_gives_no_values_is_named(record: Record, dwell_time_us: float) -> None:
    with pytest.raises(ConfigError, match=r"scan 'scan' has dwell times of .* no picture can be made of it"):
        export(record(dwell_time_us=dwell_time_us), "zarr")


@pytest.mark.parametrize("dwell_time_us", [1e-38, 3e38])
def test_a_dwell_time_of_a_path_that_gives_no_values_is_named(record: Record, dwell_time_us: float) -> None:
    path = ScanPath(GRID, PATH.positions, dwell_time_us)
    file = record(paths=(path,))
    with pytest.raises(ConfigError, match="scan 'scan' has dwell times of"):
        export(file, "zarr")
    assert export(file, "csv").exists()


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_what_is_the_name_of_no_file_is_refused(record: Record, name: str) -> None:
    selection = make_selection([], None, None, "auto")
    with pytest.raises(ConfigError, match="expected the name of a file"):
        run_export(record(), "csv", selection, Path(name))
    with pytest.raises(ConfigError, match="expected the name of a file"):
        run_export(Path(name), "csv", selection, None)


def test_a_frame_number_of_any_length_is_refused_in_a_line() -> None:
    with pytest.raises(ConfigError, match="--frames takes A:B") as refusal:
        make_selection([], None, "9" * 5_000, "auto")
    assert len(str(refusal.value)) < 200


@pytest.mark.parametrize("form", [*FORMATS, *POINT_FORMATS])
def test_frames_that_are_not_there_are_refused_in_every_format(record: Record, form: str) -> None:
    file = record()
    with pytest.raises(ConfigError, match="hold no frame to export: the scan has 3 frames"):
        export(file, form, frames="900:")
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("form", POINT_FORMATS)
@pytest.mark.parametrize("options", [{"engine": "nearest"}, {"engine": "nonsense"}, {"what": "uncertainty"}], ids=str)
def test_options_of_pictures_are_refused_for_points(record: Record, form: str, options: dict[str, str]) -> None:
    what = [options["what"]] if "what" in options else []
    with pytest.raises(ConfigError, match=f"are for pictures, {form} holds the measured samples"):
        export(record(), form, *what, engine=options.get("engine", "auto"))


def test_an_engine_that_does_not_exist_is_refused_even_if_none_is_needed(record: Record) -> None:
    with pytest.raises(ConfigError, match="did you mean 'linear'"):
        export(record(), "tiff", "sparse", engine="linnear")


def test_control_characters_in_names_do_not_reach_the_terminal(
    record: Record, capsys: pytest.CaptureFixture[str]
) -> None:
    file = record()
    named = file.with_name("a\x1b[31m\udcff.mcap")
    file.rename(named)
    run_export(named, "hspy", make_selection(["mask"], None, None, "auto"), None)
    assert "a?[31m?.hspy" in capsys.readouterr().out
    with h5py.File(named.with_suffix(".hspy")) as exported:
        assert exported["Experiments/mask/original_metadata/lowdose"].attrs["session"] == "a?[31m?.mcap"
    with pytest.raises(ConfigError, match=r"cannot write .*no\?/x: there is no folder"):
        run_export(named, "csv", make_selection([], None, None, "auto"), file.parent / "no\x1b" / "x")
