"""Exports open in the programs they are for, calibrated and labelled, and are whole or not there."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import rsciio.emd
import rsciio.hspy
import rsciio.tiff
import tifffile
import zarr

from lowdose.acquisition import exporting_tiff
from lowdose.acquisition.assembly import FrameAssembler
from lowdose.acquisition.exporting import (
    FORMATS,
    LAYERS,
    POINT_FORMATS,
    ExportError,
    ExportFrame,
    ExportPlan,
    as_json,
    export_frames,
    export_points,
    told_apart,
)
from lowdose.acquisition.exporting_points import measured_frames
from lowdose.acquisition.messages import SampleBlock, ScanStart
from lowdose.scan_patterns import ScanGrid, ScanPath

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

ROWS, COLS, N_FRAMES = 6, 8, 3
GRID = ScanGrid((ROWS, COLS), pixel_size_nm=0.05)
METADATA = {
    "program": "lowdose 1.2.3",
    "started": "2026-03-04T05:06:07.000+00:00",
    "pattern": {"name": "lattice", "coverage": 0.25},
    "beam_current_pa": 25.0,
    "energy_kev": 200.0,
    "replay_of": None,
}


def plan_of(**changes: Any) -> ExportPlan:
    fields = {
        "grid": GRID,
        "scale": 1,
        "channels": ("HAADF", "BF"),
        "layers": LAYERS,
        "n_frames": N_FRAMES,
        "frame_time_s": 0.25,
        "engines": "network + linear",
        "uncertainty_kind": "calibrated",
        "metadata": METADATA,
    }
    return ExportPlan(**{**fields, **changes})


def frames_of(plan: ExportPlan, n_frames: int | None = None) -> list[ExportFrame]:
    rng = np.random.default_rng(3)
    frames = []
    for k in range(plan.n_frames if n_frames is None else n_frames):
        layers = {layer: rng.random(plan.shape_of(layer)[1:]).astype(np.float32) for layer in plan.layers}
        layers["mask"] = rng.integers(0, 2, (1, *plan.grid.shape), np.uint8)
        frames.append(ExportFrame(10 + k, 11 - k, 11, 0.25 * k, "linear", layers))
    return frames


def exported(path: Path, form: str, **changes: Any) -> tuple[Path, ExportPlan, list[ExportFrame]]:
    plan = plan_of(**changes)
    frames = frames_of(plan)
    out = path / f"out{FORMATS[form][0]}"
    export_frames(out, form, plan, frames)
    assert [child.name for child in path.iterdir()] == [out.name]
    return out, plan, frames


def stack(frames: list[ExportFrame], layer: Any) -> NDArray[Any]:
    return np.stack([frame.layers[layer] for frame in frames])


# --- each format in the program it is for ---------------------------------------------------------------------------


def test_tiff_is_an_imagej_hyperstack_in_nanometres(tmp_path: Path) -> None:
    out, _, frames = exported(tmp_path, "tiff")
    assert {file.name for file in out.iterdir()} == {"metadata.json", *(f"{layer}.tif" for layer in LAYERS)}
    for layer in LAYERS:
        with tifffile.TiffFile(out / f"{layer}.tif") as file:
            assert file.is_imagej
            assert file.imagej_metadata is not None
            assert file.imagej_metadata["unit"] == "nm"
            assert file.imagej_metadata["finterval"] == 0.25
            assert file.pages[0].tags["XResolution"].value == (20, 1)  # pixels per nm
            shape = file.asarray().reshape(stack(frames, layer).shape)
            np.testing.assert_array_equal(shape, stack(frames, layer), strict=True)
    (signal,) = rsciio.tiff.file_reader(out / "completed.tif")
    assert [axis["scale"] for axis in signal["axes"][-2:]] == [pytest.approx(0.05)] * 2


def test_tiff_says_above_each_picture_what_is_inferred(tmp_path: Path) -> None:
    out, plan, _ = exported(tmp_path, "tiff")
    with tifffile.TiffFile(out / "completed.tif") as file:
        assert file.imagej_metadata is not None
        labels = file.imagej_metadata["Labels"]
        assert len(labels) == N_FRAMES * 2
        assert labels[1] == f"BF: {plan.label('completed')}"
        assert json.loads(file.imagej_metadata["Info"])["layers"]["completed"]["inferred"] == "where mask is 0"


def test_tiff_has_its_metadata_beside_it(tmp_path: Path) -> None:
    out, plan, _ = exported(tmp_path, "tiff")
    metadata = json.loads((out / "metadata.json").read_text(encoding="utf-8"))
    assert metadata["pattern"] == METADATA["pattern"]
    assert [frame["frame_index"] for frame in metadata["frames"]] == [10, 11, 12]
    assert metadata["layers"]["uncertainty"]["inferred"] == "all"
    assert metadata["layers"]["sparse"]["label"] == plan.label("sparse")


def test_a_tiff_too_large_for_imagej_is_refused_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting_tiff, "MAX_TIFF_BYTES", 1_000)
    with pytest.raises(ExportError, match="fewer --frames"):
        export_frames(tmp_path / "out", "tiff", plan_of(), [])
    assert list(tmp_path.iterdir()) == []


def test_hspy_opens_calibrated_with_a_signal_for_each_layer(tmp_path: Path) -> None:
    out, plan, frames = exported(tmp_path, "hspy")
    signals = {signal["metadata"]["General"]["title"]: signal for signal in rsciio.hspy.file_reader(out)}
    assert set(signals) == set(LAYERS)
    for layer, signal in signals.items():
        np.testing.assert_array_equal(signal["data"], stack(frames, layer), strict=True)
        axes = [(axis["name"], axis["scale"], axis["units"], axis["navigate"]) for axis in signal["axes"]]
        assert axes == [
            ("frame", 0.25, "s", True),
            ("channel", 1.0, "", True),
            ("y", 0.05, "nm", False),
            ("x", 0.05, "nm", False),
        ]
        assert signal["metadata"]["lowdose"]["inferred"] == plan.inferred(layer)
        assert signal["metadata"]["Acquisition_instrument"]["TEM"]["beam_energy"] == 200.0
        assert signal["metadata"]["Acquisition_instrument"]["TEM"]["beam_current"] == 0.025
        assert signal["original_metadata"]["frames"]["samples_used"].tolist() == [11, 10, 9]
        assert signal["original_metadata"]["lowdose"]["replay_of"] is None
    assert signals["mask"]["metadata"]["General"]["date"] == "2026-03-04"


@pytest.mark.parametrize("n_frames", [1, N_FRAMES])
def test_emd_opens_calibrated_with_an_array_for_each_layer(tmp_path: Path, n_frames: int) -> None:
    out, _, frames = exported(tmp_path, "emd", n_frames=n_frames)
    signals = {signal["metadata"]["General"]["title"]: signal for signal in rsciio.emd.file_reader(out)}
    assert set(signals) == set(LAYERS)
    for layer, signal in signals.items():
        np.testing.assert_array_equal(signal["data"], stack(frames, layer), strict=True)
        axes = [(axis["name"], axis["scale"], axis["units"]) for axis in signal["axes"]]
        assert axes == [("frame", 0.25, "s"), ("channel", 1.0, ""), ("y", 0.05, "nm"), ("x", 0.05, "nm")]


def test_emd_can_be_followed_as_nexus(tmp_path: Path) -> None:
    out, plan, frames = exported(tmp_path, "emd")
    with h5py.File(out) as file:
        entry = file[file.attrs["default"]]
        assert entry.attrs["NX_class"] == "NXentry"
        data = entry["completed"]
        assert data.attrs["NX_class"] == "NXdata"
        signal = data[data.attrs["signal"]]
        assert [len(data[axis]) for axis in data.attrs["axes"]] == list(signal.shape)
        assert (data["x"][1], data["x"].attrs["units"]) == (0.05, "nm")
        assert (signal.attrs["units"], signal.attrs["inferred"]) == ("counts", plan.inferred("completed"))
        source = file["measurement/instrument/ebeam_column/electron_source"]
        assert (source["voltage"][()], source["voltage"].attrs["units"]) == (200_000.0, "V")
        assert file["comments/frames/frame_index"][:].tolist() == [frame.frame_index for frame in frames]


def test_zarr_has_one_chunk_for_each_picture_and_no_shards(tmp_path: Path) -> None:
    out, plan, frames = exported(tmp_path, "zarr")
    group = zarr.open_group(out, mode="r")
    assert group.metadata.zarr_format == 3
    assert group.attrs["energy_kev"] == 200.0
    assert [frame["samples_used"] for frame in group.attrs["frames"]] == [11, 10, 9]
    for layer in LAYERS:
        array = group[layer]
        assert (array.chunks, array.shards) == ((1, 1, ROWS, COLS), None)
        assert array.metadata.dimension_names == ("frame", "channel", "row", "col")
        assert array.attrs["inferred"] == plan.inferred(layer)
        np.testing.assert_array_equal(array[:], stack(frames, layer), strict=True)


# --- what every export says -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_the_mask_always_comes_along(tmp_path: Path, form: str) -> None:
    _, plan, _ = exported(tmp_path, form, layers=("completed",))
    assert plan.layers == ("mask", "completed")


def test_measured_and_inferred_layers_say_so() -> None:
    plan = plan_of()
    assert {layer: plan.inferred(layer) for layer in LAYERS} == {
        "sparse": "none",
        "mask": "none",
        "completed": "where mask is 0",
        "uncertainty": "all",
    }
    assert "network + linear" in plan.label("completed")
    assert "calibrated" in plan.label("uncertainty")


@pytest.mark.parametrize("form", FORMATS)
def test_a_finer_picture_has_finer_pixels_and_is_all_inferred(tmp_path: Path, form: str) -> None:
    _, plan, _ = exported(tmp_path, form, scale=2)
    assert plan.shape_of("completed") == (N_FRAMES, 2, 2 * ROWS, 2 * COLS)
    assert plan.shape_of("sparse") == (N_FRAMES, 2, ROWS, COLS)
    assert plan.grid_of("completed").pixel_size_nm == 0.025
    assert plan.inferred("completed") == "all"


def test_an_unknown_pixel_size_is_told_by_nothing(tmp_path: Path) -> None:
    assert plan_of(scale=2, calibrated=False).pixel_of("completed") == (0.5, "pixel")
    out, _, _ = exported(tmp_path, "tiff", calibrated=False)
    with tifffile.TiffFile(out / "completed.tif") as file:
        assert file.imagej_metadata is not None
        assert file.imagej_metadata["unit"] == "pixel"  # to ImageJ: not calibrated
        assert file.pages[0].tags["XResolution"].value == (1, 1)
    assert "nm" not in (out / "metadata.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(("form", "reader"), [("hspy", rsciio.hspy), ("emd", rsciio.emd)])
def test_axes_of_an_unknown_pixel_size_are_in_pixels(tmp_path: Path, form: str, reader: Any) -> None:
    out, _, _ = exported(tmp_path, form, calibrated=False)
    for signal in reader.file_reader(out):
        assert [(axis["scale"], axis["units"]) for axis in signal["axes"][2:]] == [(1.0, "pixel")] * 2


def test_what_is_not_known_of_the_beam_is_not_told(tmp_path: Path) -> None:
    out, _, _ = exported(tmp_path, "hspy", metadata={"energy_kev": 80.0, "beam_current_pa": float("nan")})
    (signal, *_) = rsciio.hspy.file_reader(out)
    assert signal["metadata"]["Acquisition_instrument"]["TEM"] == {"acquisition_mode": "STEM", "beam_energy": 80.0}
    export_frames(tmp_path / "out.emd", "emd", plan_of(metadata={}), frames_of(plan_of()))
    with h5py.File(tmp_path / "out.emd") as file:
        assert "measurement" not in file


ODD = {
    "mixed": [1, "x", None],
    "ragged": [1, [2, 3]],
    "large": [(1 << 64) - 1, -1],
    "nul": "a\0b",
    "n\0l": 1,
    ".": {"x": 1},
    "a/b": {"x": 1},
    "a_b": {"y": 1},
    "": {b"bytes": b"bytes"},
    "number": [1.0, float("nan")],
}


@pytest.mark.parametrize("form", FORMATS)
def test_odd_metadata_does_not_keep_pictures_from_being_exported(tmp_path: Path, form: str) -> None:
    out, _, _ = exported(tmp_path, form, n_frames=1, metadata={"pattern": ODD}, channels=("a\0b",))
    if form == "emd":
        with h5py.File(out) as file:
            pattern = file["comments/pattern"]
            assert json.loads(pattern.attrs["mixed"]) == ODD["mixed"]
            assert json.loads(pattern.attrs["large"]) == ODD["large"]
            assert json.loads(pattern.attrs["nul"]) == "a\0b"
            assert (pattern["a_b"].attrs["x"], pattern["a_b_2"].attrs["y"]) == (1, 1)


def test_what_is_told_is_json() -> None:
    told = as_json({b"k": (1, float("inf"), {2: float("nan")}), "x": b"v"})
    assert told == {"b'k'": [1, None, {"2": None}], "x": "b'v'"}


def test_names_are_told_apart_by_numbers() -> None:
    assert told_apart(["a", "a_2", "a", "a"]) == ["a", "a_2", "a_3", "a_4"]


# --- whole or not there ---------------------------------------------------------------------------------------------


def breaking(plan: ExportPlan, error: BaseException) -> Iterator[ExportFrame]:
    yield frames_of(plan)[0]
    raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(5, "Input/output error"), ValueError("no")], ids=repr)
@pytest.mark.parametrize("form", FORMATS)
def test_an_export_that_is_cancelled_or_fails_leaves_nothing(tmp_path: Path, form: str, error: BaseException) -> None:
    expected = ExportError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        export_frames(tmp_path / "out", form, plan_of(), breaking(plan_of(), error))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_with_a_frame_too_few_leaves_nothing(tmp_path: Path, form: str) -> None:
    with pytest.raises(ExportError, match="2 frames came, 3 were expected"):
        export_frames(tmp_path / "out", form, plan_of(), frames_of(plan_of(), 2))
    assert list(tmp_path.iterdir()) == []


def test_what_is_put_beside_the_frames_is_there_before_they_appear(tmp_path: Path) -> None:
    def finish(part: Path) -> None:
        assert not (tmp_path / "out").exists()
        (part / "more").write_text("", encoding="utf-8")

    export_frames(tmp_path / "out", "tiff", plan_of(), frames_of(plan_of()), finish=finish)
    assert (tmp_path / "out" / "more").exists()


@pytest.mark.parametrize("form", FORMATS)
def test_a_frame_of_another_size_is_refused(tmp_path: Path, form: str) -> None:
    frames = [*frames_of(plan_of(), 1), *frames_of(plan_of(scale=2), 1)]
    with pytest.raises(ExportError, match=r"completed of frame 10 is \(2, 12, 16\), those before are \(2, 6, 8\)"):
        export_frames(tmp_path / "out", form, plan_of(), frames)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", FORMATS)
def test_nothing_is_overwritten(tmp_path: Path, form: str) -> None:
    (tmp_path / "out").write_text("mine", encoding="utf-8")
    with pytest.raises(ExportError, match="exists already"):
        export_frames(tmp_path / "out", form, plan_of(), frames_of(plan_of()))
    assert (tmp_path / "out").read_text(encoding="utf-8") == "mine"


FILLS_UP = """
import resource, sys
from pathlib import Path
import numpy as np
from lowdose.acquisition.exporting import ExportError, ExportFrame, ExportPlan, export_frames
from lowdose.scan_patterns.grid import ScanGrid

resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
rng = np.random.default_rng(0)
plan = ExportPlan(ScanGrid((400, 400)), 1, ("HAADF",), ("sparse",), 4)
noise = rng.random((1, 400, 400), np.float32)
mask = np.ones((1, 400, 400), np.uint8)
frames = [ExportFrame(k, 1, 1, 0.0, "", {"sparse": noise, "mask": mask}) for k in range(4)]
for form in ("tiff", "hspy", "emd", "zarr"):
    try:
        export_frames(Path(form), form, plan, frames)
    except ExportError as error:
        print(form, error)
"""


def test_a_disk_that_fills_up_is_one_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    run = [sys.executable, "-c", FILLS_UP]
    lines = subprocess.run(
        run, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    ).stdout.splitlines()
    assert [line.split(maxsplit=1)[0] for line in lines] == list(FORMATS)
    assert all("cannot write" in line for line in lines), lines
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("form", "library"), [("hspy", "h5py"), ("emd", "h5py"), ("zarr", "zarr")])
def test_a_missing_library_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, library: str
) -> None:
    monkeypatch.delitem(sys.modules, FORMATS[form][1].partition(":")[0], raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ExportError, match=rf'needs {library}: pip install "lowdose\[export\]"'):
        export_frames(tmp_path / "out", form, plan_of(), [])


def test_exporting_alone_imports_no_extra_library() -> None:
    code = "import sys, lowdose.acquisition.exporting; print({'h5py', 'zarr', 'tifffile'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout == "set()\n"


# --- points ---------------------------------------------------------------------------------------------------------

POSITIONS = np.array([[0, 0.25], [1, 2], [3.5, 7]], np.float32)
START = ScanStart(
    "scan", (ScanPath(GRID, POSITIONS, [1.0, 2.0, 0.1]),), {}, ("HAADF", "B/F"), 1.0, 25.0, 200.0, 0, None, 0, 0
)


def block(first: int, counts: list[list[int]], frame: int = 7) -> SampleBlock:
    return SampleBlock("scan", START.paths[0].digest, frame, first, np.array(counts, np.uint16), 0, 0, 0, 0)


BLOCKS = [block(0, [[1, 2], [65_535, 4]]), block(1, [[3], [5]])]


def samples_of(blocks: list[SampleBlock]) -> list[tuple[int, list[int]]]:
    """Return the frame and the counts of HAADF of all samples."""
    return [(f.frame_index, f.counts[0, f.received].tolist()) for f in measured_frames(START, blocks)]


def test_csv_has_a_row_for_each_sample_after_comments_and_a_header(tmp_path: Path) -> None:
    frames = measured_frames(START, BLOCKS)
    export_points(tmp_path / "points.csv", "csv", START, {"note": "two\nlines", "dwell": float("nan")}, frames)
    lines = (tmp_path / "points.csv").read_text(encoding="utf-8").splitlines()
    comments = [line for line in lines if line.startswith("#")]
    assert "nothing inferred" in comments[0]
    assert comments[1:] == ['# note: "two\\nlines"', "# dwell: null"]
    assert lines[len(comments) :] == [
        "frame,row,col,dwell_time_us,counts_HAADF,counts_B_F",
        "7,0,0.25,1,1,65535",
        "7,1,2,2,3,5",
    ]


def test_npy_has_the_same_samples_and_needs_no_pickle(tmp_path: Path) -> None:
    frames = measured_frames(START, [*BLOCKS, block(2, [[6], [7]], frame=8)])
    export_points(tmp_path / "points.npy", "npy", START, {}, frames)
    points = np.load(tmp_path / "points.npy", allow_pickle=False)
    assert points.dtype.names == ("frame", "row", "col", "dwell_time_us", "counts_HAADF", "counts_B_F")
    np.testing.assert_array_equal(points["row"], POSITIONS[:, 0])
    assert points["counts_B_F"].tolist() == [65_535, 5, 7]
    assert points["frame"].tolist() == [7, 7, 8]


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ([block(0, [[1, 2], [0, 0]]), block(0, [[1, 2], [0, 0]])], [(7, [1, 2])]),
        ([block(0, [[1, 2], [0, 0]]), block(1, [[9, 3], [0, 0]])], [(7, [1, 9, 3])]),  # the last, while not whole
        ([block(0, [[1, 2, 3], [0, 0, 0]]), block(0, [[9], [0]])], [(7, [1, 2, 3])]),  # the frame was whole
        ([block(0, [[1], [0]]), block(0, [[2], [0]], 8), block(1, [[9], [0]])], [(7, [1]), (8, [2])]),  # late
        ([block(2, [[3], [0]]), block(0, [[1], [0]])], [(7, [1, 3])]),
        ([block(2, [[3, 4], [0, 0]])], []),  # beyond the path
    ],
    ids=["doubled", "doubled and different", "after the last", "late", "out of order", "beyond"],
)
def test_samples_are_those_that_the_pictures_are_made_of(blocks: list[SampleBlock], expected: list[Any]) -> None:
    assert samples_of(blocks) == expected
    assembler = FrameAssembler(START)
    pictures = [frame for block in blocks for frame in assembler.add(block, 0)] + assembler.finish()
    assert [frame.samples_used for frame in pictures] == [len(counts) for _, counts in expected]
    dwell_us = np.ones(GRID.shape)
    dwell_us.flat[START.paths[0].flat_pixels] = START.paths[0].dwell_times_us
    for frame, (_, counts) in zip(pictures, expected, strict=True):  # values are per 1 µs
        assert np.round(frame.values[0] * dwell_us)[frame.mask].tolist() == counts


@pytest.mark.parametrize("form", POINT_FORMATS)
def test_channels_of_any_name_and_frames_of_any_index_have_their_columns(tmp_path: Path, form: str) -> None:
    start, last = replace(START, channels=("BF 1", "暗场", "BF_1")), (1 << 63) - 1
    frames = measured_frames(start, [block(0, [[1], [2], [3]], last)])
    export_points(tmp_path / "out", form, start, {}, frames)
    if form == "npy":
        points = np.load(tmp_path / "out", allow_pickle=False)
        assert points.dtype.names[-3:] == ("counts_BF_1", "counts_暗场", "counts_BF_1_2")
        assert points.tolist() == [(last, 0, 0.25, 1, 1, 2, 3)]
    else:
        header, row = (tmp_path / "out").read_text(encoding="utf-8").splitlines()[-2:]
        assert header.endswith("counts_BF_1,counts_暗场,counts_BF_1_2")
        assert row == f"{last},0,0.25,1,1,2,3"


@pytest.mark.parametrize("form", POINT_FORMATS)
def test_points_that_fail_leave_nothing(tmp_path: Path, form: str) -> None:
    def broken() -> Iterator[SampleBlock]:
        yield from BLOCKS
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_points(tmp_path / "out", form, START, {}, measured_frames(START, broken()))
    assert list(tmp_path.iterdir()) == []
