"""`lowdose session info | verify | recover | export`."""

from __future__ import annotations

import json
import resource
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rsciio.hspy
import zarr

from lowdose.acquisition.assembly import FrameAssembler
from lowdose.acquisition.exporting import FORMATS
from lowdose.acquisition.frames import DenseFrame, EngineStamp
from lowdose.acquisition.messages import SampleBlock, ScanEnd, ScanStart
from lowdose.acquisition.recording import SessionWriter, note
from lowdose.acquisition.session_check import verify
from lowdose.acquisition.session_reader import SessionError
from lowdose.config.errors import ConfigError
from lowdose.config.session import print_info, print_recovery, print_verification
from lowdose.config.session_export import make_selection, run_export
from lowdose.reconstruction.engines.classical_engine import LinearEngine
from lowdose.reconstruction.pipeline import Reconstructor
from lowdose.scan_patterns import ScanGrid, ScanPath

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GRID = ScanGrid((16, 24), pixel_size_nm=0.1)
N = 96
N_FRAMES = 3


@pytest.fixture
def path_of_samples(rng: np.random.Generator) -> ScanPath:
    flat = np.sort(rng.choice(GRID.n_pixels, N, replace=False))
    return ScanPath(GRID, np.stack(np.divmod(flat, GRID.cols), axis=1), 2.0)


def blocks_of(path: ScanPath, scan_id: str, rng: np.random.Generator) -> list[SampleBlock]:
    blocks = []
    for frame in range(N_FRAMES):
        counts = rng.poisson(50, (2, N)).astype(np.uint16)
        for first in range(0, N, 32):
            t_ns = 10**6 * frame + 2_000 * first
            part = np.ascontiguousarray(counts[:, first : first + 32])
            blocks.append(SampleBlock(scan_id, path.digest, frame, first, part, len(blocks), t_ns, t_ns + 64_000, 0))
    return blocks


def start_of(path: ScanPath, scan_id: str) -> ScanStart:
    pattern = {"name": "random", "coverage": 0.25}
    return ScanStart(scan_id, (path,), pattern, ("HAADF", "BF"), 2.0, 25.0, 200.0, 0, None, 1_700 * 10**15, 0)


def dense_of(start: ScanStart, frame: int, uncertainty_kind: Any = "calibrated") -> DenseFrame:
    image = np.full((2, 2 * GRID.rows, 2 * GRID.cols), frame, np.float32)
    return DenseFrame(
        grid=ScanGrid(image.shape[1:], 0.05),
        image=image,
        uncertainty=image + 1,
        uncertainty_kind=uncertainty_kind,
        measured=np.zeros((2, *GRID.shape), np.float32),
        hits=start.paths[0].hits,
        scale=2,
        scan_id=start.scan_id,
        path_digest=start.paths[0].digest,
        frame_index=frame,
        complete=True,
        samples_used=N,
        channels=start.channels,
        engines=(EngineStamp("network", "abc", "FP32"),),
        dropped=0,
        gaps=0,
        times_ns={"first_sample": 10**6 * frame},
    )


@pytest.fixture
def session(tmp_path: Path, path_of_samples: ScanPath, rng: np.random.Generator) -> Callable[..., Path]:
    """Return a function that records a session of so many scans, leaving out some blocks."""

    def record(n_scans: int = 1, *, without: tuple[int, ...] = (), dense: str | None = None) -> Path:
        file = tmp_path / "session.mcap"
        with SessionWriter(file, wall_clock=lambda: 1_700 * 10**15) as writer:
            for k in range(n_scans):
                start = start_of(path_of_samples, f"scan-{k}")
                writer.write(start)
                for block in blocks_of(path_of_samples, start.scan_id, rng):
                    if block.seq not in without:
                        writer.write(block)
                for frame in range(N_FRAMES) if dense else ():
                    writer.write(dense_of(start, frame, dense))
                writer.write(ScanEnd(start.scan_id, N_FRAMES - 1, "stopped"))
            writer.write(note("a red\x1b[31m herring", 1))
        return file

    return record


def export(file: Path, form: str, *what: str, scan: int | None = None, frames: str | None = None, engine: str = "auto"):
    run_export(file, form, make_selection(what, scan, frames, engine), file.with_name("out"))
    return file.with_name("out")


# --- info, verify, recover ------------------------------------------------------------------------------------------


def test_info_tells_what_is_in_a_session(session: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert print_info(session()) == 0
    out = capsys.readouterr().out
    for fact in (
        "session.mcap: readable to its end",
        "random on 16 x 24 pixels of 0.1 nm, HAADF, BF",
        "3 frames, 3 of them whole",
    ):
        assert fact in out
    # 3 frames of 96 samples, 2 µs at 25 pA over 384 Å^2: 3 * 96 * 2 * 25 * 6.241509 / 384
    assert "dose 234.1 e-/Å²" in out
    assert "no gaps" in out
    assert "ended: stopped" in out


def test_info_never_sends_a_files_control_characters_to_the_terminal(
    session: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    print_info(session())
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "note: a red?[31m herring" in out


def test_info_tells_gaps_and_writes_json(
    session: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert print_info(session(2, without=(4,)), tmp_path / "figures.json") == 0
    assert "gaps: 32 samples missing by index, 1 blocks by running number" in capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert [scan["scan_id"] for scan in figures["scans"]] == ["scan-0", "scan-1"]
    assert figures["scans"][0]["samples_missing"] == 32
    assert figures["session"]["whole"] is True
    assert figures["scans"][0]["started"] == "2023-11-14T22:13:20.000+00:00"


def written(file: Path, *messages: Any) -> Path:
    with SessionWriter(file) as writer:
        for message in messages:
            writer.write(message)
    return file


def test_figures_are_json_whatever_a_session_says(tmp_path: Path, path_of_samples: ScanPath) -> None:
    nested: Any = "bottom"
    for _ in range(400):
        nested = {"x": nested}
    pattern = {"name": "own", "table": {b"key": [float("-inf"), b"value"]}, "nested": nested}
    hostile = replace(
        start_of(path_of_samples, "scan"), energy_kev=float("nan"), beam_current_pa=float("inf"), pattern=pattern
    )
    print_info(written(tmp_path / "s.mcap", hostile), tmp_path / "figures.json")
    text = (tmp_path / "figures.json").read_text(encoding="utf-8")
    (scan,) = json.loads(text, parse_constant=pytest.fail)["scans"]  # called for NaN and Infinity, which are no JSON
    assert (scan["energy_kev"], scan["beam_current_pa"]) == (None, None)
    assert scan["pattern"]["table"] == {"b'key'": [None, "b'value'"]}


def test_figures_that_cannot_be_written_leave_those_before_and_are_told_by_name(
    session: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, figures = session(), tmp_path / "figures.json"
    figures.write_text("before", encoding="utf-8")
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(RuntimeError, match=r"cannot write .*figures\.json: File too large"):
            print_info(file, figures)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert figures.read_text(encoding="utf-8") == "before"
    assert {child.name for child in tmp_path.iterdir()} == {file.name, figures.name}


def test_a_files_own_name_never_reaches_the_terminal_as_it_is(
    session: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = session().rename(tmp_path / "s\x1b[31m.mcap")
    print_info(file)
    print_verification(file)
    print_recovery(file, tmp_path / "out\x1b[31m.mcap")
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert out.count("s?[31m.mcap") == 3


def test_info_never_calls_a_file_whole_that_verify_does_not(
    session: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file = session()
    data = bytearray(file.read_bytes())
    data[-40] ^= 1  # in the summary, which is not needed for reading
    file.write_bytes(data)
    print_info(file)
    assert "session.mcap: readable to its end" in capsys.readouterr().out
    assert print_verification(file) == 1


def test_blocks_that_came_too_late_are_no_misfits(
    tmp_path: Path, path_of_samples: ScanPath, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *later = blocks_of(path_of_samples, "scan", rng)
    print_info(written(tmp_path / "s.mcap", start_of(path_of_samples, "scan"), *later, first))
    assert "1 blocks came too late or fit nowhere" in capsys.readouterr().out


def test_verify_tells_by_its_code_whether_a_session_is_whole(
    session: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file = session()
    assert print_verification(file) == 0
    file.write_bytes(file.read_bytes()[:-30])
    assert print_verification(file) == 1
    assert "NOT whole" in capsys.readouterr().out


def test_recover_makes_a_session_that_verifies(session: Callable[..., Path], tmp_path: Path) -> None:
    file = session()
    file.write_bytes(file.read_bytes()[:-30])
    assert print_recovery(file, tmp_path / "recovered.mcap") == 0
    assert verify(tmp_path / "recovered.mcap").whole


@pytest.mark.parametrize("command", [print_info, print_verification, lambda file: print_recovery(file, file)])
def test_what_is_no_session_is_refused(tmp_path: Path, command: Callable[[Path], int]) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(SessionError, match="no session"):
        command(tmp_path / "picture.png")


# --- export ---------------------------------------------------------------------------------------------------------


def test_completed_frames_are_made_of_the_recorded_samples(
    session: Callable[..., Path], path_of_samples: ScanPath, until: Callable[..., Any]
) -> None:
    file = session()
    group = zarr.open_group(export(file, "zarr", engine="linear"), mode="r")
    assert sorted(group) == ["completed", "mask", "sparse"]
    start, reconstructor = start_of(path_of_samples, "scan-0"), Reconstructor([LinearEngine()])
    assembler = FrameAssembler(start)
    blocks = blocks_of(path_of_samples, "scan-0", _same_rng())
    sparse = [frame for block in blocks for frame in assembler.add(block, 0)]
    reconstructor.prepare(start)
    until(lambda: reconstructor.ready(start), "the infill maps")
    for k, frame in enumerate(sparse):
        dense = reconstructor.complete(frame, start)
        assert dense is not None
        np.testing.assert_array_equal(group["completed"][k], dense.image)
        np.testing.assert_array_equal(group["sparse"][k], frame.values)
        np.testing.assert_array_equal(group["mask"][k, 0], frame.mask)
    reconstructor.close()
    assert [frame["engine"] for frame in group.attrs["frames"]] == ["linear"] * N_FRAMES
    assert group["completed"].attrs["inferred"] == "where mask is 0"


def _same_rng() -> np.random.Generator:
    """Return the generator of the fixture, after what the path took of it."""
    rng = np.random.default_rng(7)
    rng.choice(GRID.n_pixels, N, replace=False)
    return rng


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_takes_a_session(session: Callable[..., Path], form: str) -> None:
    assert export(session(), form).exists()


def test_a_hole_in_a_frame_is_a_hole_in_its_mask(session: Callable[..., Path]) -> None:
    group = zarr.open_group(export(session(without=(4,)), "zarr", "sparse"), mode="r")
    assert [int(group["mask"][k].sum()) for k in range(N_FRAMES)] == [N, N - 32, N]
    assert [frame["samples_used"] for frame in group.attrs["frames"]] == [N, N - 32, N]
    assert group.attrs["samples_missing"] == 32


def test_a_frame_that_was_broken_off_is_exported_with_its_own_samples_alone(session: Callable[..., Path]) -> None:
    group = zarr.open_group(export(session(without=(7, 8)), "zarr", "sparse"), mode="r")
    assert int(group["mask"][2].sum()) == 32


def test_completed_frames_can_be_taken_from_the_session(session: Callable[..., Path]) -> None:
    what = ("completed", "uncertainty", "mask")
    out = export(session(dense="calibrated"), "hspy", *what, frames="1:3", engine="recorded")
    signals = {signal["metadata"]["General"]["title"]: signal for signal in rsciio.hspy.file_reader(out)}
    assert set(signals) == set(what)
    assert signals["completed"]["data"][:, 0, 0, 0].tolist() == [1, 2]
    assert signals["uncertainty"]["data"][:, 0, 0, 0].tolist() == [2, 3]
    assert [axis["scale"] for axis in signals["completed"]["axes"][2:]] == [0.05, 0.05]
    assert [axis["scale"] for axis in signals["mask"]["axes"][2:]] == [0.1, 0.1]


def test_an_uncertainty_that_is_none_is_not_exported(session: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="uncertainty: the engine tells none"):
        export(session(dense="none"), "zarr", "uncertainty", engine="recorded")


@pytest.mark.parametrize(("frames", "expected"), [("1", [1]), ("1:", [1, 2]), (":2", [0, 1]), ("0:9", [0, 1, 2])])
def test_frames_are_chosen_by_their_index(session: Callable[..., Path], frames: str, expected: list[int]) -> None:
    group = zarr.open_group(export(session(), "zarr", "mask", frames=frames), mode="r")
    assert [frame["frame_index"] for frame in group.attrs["frames"]] == expected


def test_points_are_all_measured_samples(session: Callable[..., Path], path_of_samples: ScanPath) -> None:
    points = np.load(export(session(without=(4,)), "npy"), allow_pickle=False)
    assert len(points) == N_FRAMES * N - 32
    np.testing.assert_array_equal(points["row"][:N], path_of_samples.positions[:, 0])
    assert (points["dwell_time_us"] == 2).all()


def test_a_session_cut_short_is_exported_as_far_as_it_goes(
    session: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    file = session()
    file.write_bytes(file.read_bytes()[:-30])
    assert export(file, "csv").exists()
    assert "is not whole" in caplog.text


def test_an_export_without_a_name_lies_beside_the_session(
    session: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file = session(2)
    run_export(file, "csv", make_selection([], 2, None, "auto"), None)
    assert file.with_name("session-scan2.csv").exists()
    assert f"wrote {file.with_name('session-scan2.csv')}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"form": "tif"}, "unknown --format 'tif': did you mean 'tiff'"),
        ({"what": ("compleated",)}, "did you mean 'completed'"),
        ({"frames": "3:3"}, "holds no frame"),
        ({"frames": "a:b"}, "--frames takes A:B"),
        ({"frames": "5:9"}, "no frame to export: the scan has 3 frames"),
        ({"scan": 3}, "--scan must be 1 to 2, got 3"),
        ({"scan": None}, "has 2 scans, choose one with --scan"),
        ({"engine": "recorded"}, "holds no completed frames"),
        ({"engine": "linnear"}, "did you mean 'linear'"),
    ],
    ids=str,
)
def test_a_wrong_option_is_refused_and_nothing_written(
    session: Callable[..., Path], options: dict[str, Any], expected: str
) -> None:
    file = session(2)
    arguments: dict[str, Any] = {"form": "zarr", "what": (), "scan": 1, **options}
    with pytest.raises(ConfigError, match=expected):
        export(file, arguments.pop("form"), *arguments.pop("what"), **arguments)
    assert [child.name for child in file.parent.iterdir()] == [file.name]


def test_an_export_never_writes_over_a_file(session: Callable[..., Path]) -> None:
    file = session()
    export(file, "csv")
    with pytest.raises(ConfigError, match="exists already"):
        export(file, "csv")
