"""Recorded full rasters as specimens: counts of a session, taken as the pixels of an image."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lowdose.acquisition.assembly import FrameAssembler
from lowdose.acquisition.messages import SampleBlock
from lowdose.scan_patterns import ScanGrid, ScanPath
from lowdose.simulator import session_images
from lowdose.simulator.image_files import ImageFacts, SpecimenFileError
from lowdose.simulator.session_images import read_session
from lowdose.simulator.sources import Images, read_image, scale_levels, unit_range
from tests.simulator.sessions import GRID, new_raster, new_scan, scanned, write_session

if TYPE_CHECKING:
    from pathlib import Path

    from lowdose.acquisition.wire import Message


def measured(messages: list[Message], frame: int, channel: int = 0) -> np.ndarray:
    """Return a frame of a recorded scan, counts per dwell time."""
    assembler = FrameAssembler(messages[0])  # type: ignore[arg-type]
    frames = [f for m in messages if isinstance(m, SampleBlock) for f in assembler.add(m, 0)]
    return frames[frame].values[channel]


@pytest.fixture
def raster() -> list[Message]:
    return scanned(new_raster(), 3)


def test_a_recorded_raster_is_a_specimen_normalised_as_images_are(raster: list[Message], tmp_path: Path) -> None:
    path = write_session(tmp_path / "s.mcap", raster)
    source = Images(str(path), frame_period_s=1.0).open(GRID)
    assert len(source) == 3
    for k in (0, 1, 2, 0, 2):
        expected = scale_levels(unit_range(measured(raster, k)))
        np.testing.assert_allclose(source.frame(float(k)), expected, atol=1e-6)
    assert source.facts == ImageFacts(GRID.pixel_size_nm, 2.0, "HAADF")


def test_its_channels_are_chosen_by_name(raster: list[Message], tmp_path: Path) -> None:
    path = write_session(tmp_path / "s.mcap", raster)
    np.testing.assert_array_equal(read_image(path, 1, "BF").values, measured(raster, 1, channel=1))
    with pytest.raises(SpecimenFileError, match="holds no full raster of channel 'ADF'"):
        read_image(path, 0, "ADF")


def test_sparse_scans_and_frames_with_a_hole_are_passed_over(raster: list[Message], tmp_path: Path) -> None:
    sparse = scanned(new_scan("sparse"), 2)
    holed = [m for m in raster if not (isinstance(m, SampleBlock) and (m.frame_index, m.first) == (1, 64))]
    path = write_session(tmp_path / "s.mcap", [*sparse, *holed])
    images = [read_session(path, k, None) for k in range(2)]
    assert [image.n_images for image in images] == [2, 2]
    np.testing.assert_array_equal(images[0].values, measured(raster, 0))
    np.testing.assert_array_equal(images[1].values, measured(raster, 2))
    with pytest.raises(SpecimenFileError, match="holds 2 full rasters, number 3 was asked for"):
        read_session(path, 2, None)


def test_a_sequence_is_read_on_from_where_it_was(
    raster: list[Message], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_session(tmp_path / "s.mcap", raster)
    passes, original = [], session_images.SessionReader
    monkeypatch.setattr(session_images, "SessionReader", lambda path: passes.append(path) or original(path))
    for k in range(3):
        read_session(path, k, None)
    assert len(passes) == 2  # one that counts, one that reads


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        (scanned(new_scan(), 2), "holds no full raster: expected a session with a whole frame"),
        ([], "holds no full raster"),
        (scanned(new_raster(grid=ScanGrid((16, 16))), 1), "has 16 x 16 pixels"),
        (scanned(new_raster(dwell_time_us=float("inf")), 1), "holds no full raster"),
    ],
    ids=["sparse", "empty", "small", "unsound"],
)
def test_a_session_that_is_no_image_is_refused(messages: list[Message], why: str, tmp_path: Path) -> None:
    path = write_session(tmp_path / "s.mcap", messages)
    with pytest.raises(SpecimenFileError, match=why):
        Images(str(path)).open(GRID)


def test_a_file_that_is_no_session_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.mcap").write_bytes(b"no session at all")
    with pytest.raises(SpecimenFileError, match="is no session: expected an MCAP file written by lowdose"):
        Images(str(tmp_path / "s.mcap")).open(GRID)


def test_a_large_grid_with_a_few_positions_is_told_apart_before_its_mask_is_made(tmp_path: Path) -> None:
    claims = ScanPath(ScanGrid((16_384, 16_384)), new_scan().paths[0].positions, 2.0)
    path = write_session(tmp_path / "s.mcap", [new_scan(paths=(claims,))])
    tracemalloc.start()
    with pytest.raises(SpecimenFileError, match="holds no full raster"):
        read_session(path, 0, None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6  # the mask alone would have 268 MB


def test_a_folder_of_images_may_hold_sessions(raster: list[Message], tmp_path: Path) -> None:
    write_session(tmp_path / "a2.mcap", raster)
    np.save(tmp_path / "a1.npy", np.arange(48 * 40.0).reshape(48, 40))
    source = Images(str(tmp_path)).open(GRID)
    assert len(source) == 2
    np.testing.assert_allclose(source.frame(1.0), scale_levels(unit_range(measured(raster, 0))), atol=1e-6)
