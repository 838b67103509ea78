from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lowdose.reconstruction.infill import linear_map, nearest_map
from lowdose.reconstruction.lattice_infill import lattice_maps
from lowdose.scan_patterns.grid import ScanGrid
from lowdose.scan_patterns.pattern import PATTERNS
from lowdose.scan_patterns.spiral import Spiral, blurred_mask
from lowdose.training.data_settings import PatternMix
from lowdose.training.data_store import DataError, Store
from lowdose.training.masks import MaskPool

if TYPE_CHECKING:
    from pathlib import Path

    from lowdose.training.masks import Mask

EDGE = 64


@pytest.fixture
def points_file(tmp_path: Path) -> Path:
    file = tmp_path / "points.csv"
    file.write_text("row,col\n" + "".join(f"{i},{(7 * i) % EDGE}\n" for i in range(EDGE)))
    return file


def pool(pattern: dict[str, Any], folder: Path, *, seed: int = 1, blurred: bool = False, **more: Any) -> MaskPool:
    mix = PatternMix.model_validate({"pattern": pattern, "n": 3, **more})
    return MaskPool(mix, EDGE, (seed,), Store(folder / "cache"), linear=True, blurred=blurred)


def picture(mask: Mask) -> np.ndarray:
    return np.isin(np.arange(EDGE * EDGE), mask.visited).reshape(EDGE, EDGE)


@pytest.mark.parametrize("field_px", [None, 100])
@pytest.mark.parametrize("name", PATTERNS)
def test_masks_of_every_pattern_come_with_their_infill(
    name: str, field_px: int | None, tmp_path: Path, points_file: Path, rng: np.random.Generator
) -> None:
    pattern = {"name": name} | ({"path": str(points_file)} if name == "points" else {})
    for mask in pool(pattern, tmp_path, field_px=field_px, n=2):
        seen = picture(mask)
        values = rng.random((1, len(mask.visited)), np.float32)
        nearest, distance = nearest_map(seen)
        on_lattice = lattice_maps(seen)
        linear = on_lattice.linear if on_lattice else linear_map(seen, nearest)
        np.testing.assert_array_equal(mask.maps.distance, distance)
        np.testing.assert_allclose(mask.maps.linear.apply(values), linear.apply(values), atol=1e-6)
        np.testing.assert_array_equal(mask.visited[mask.samples.measured], pixels_of(mask))


def pixels_of(mask: Mask) -> np.ndarray:
    row, col = np.floor(mask.samples.positions + np.float32(0.5)).astype(int).T
    return np.asarray(row * EDGE + col)


def test_masks_are_the_same_for_the_same_seed_and_come_back_from_the_cache(tmp_path: Path) -> None:
    mapping = {"name": "random", "coverage": {"low": "1/20", "high": "1/5"}}
    first, stored = pool(mapping, tmp_path), pool(mapping, tmp_path)
    elsewhere, other = pool(mapping, tmp_path / "b"), pool(mapping, tmp_path, seed=2)
    for i in range(3):
        for same in (stored, elsewhere):
            np.testing.assert_array_equal(same[i].visited, first[i].visited)
            np.testing.assert_array_equal(same[i].samples.positions, first[i].samples.positions)
        assert not np.array_equal(other[i].visited, first[i].visited)
    assert len(set(first.coverages)) == 3


def test_listed_coverages_come_by_turns(tmp_path: Path) -> None:
    masks = pool({"name": "lattice", "coverage": ["1/4", "1/16"]}, tmp_path, n=4)
    assert masks.coverages == [1 / 4, 1 / 16, 1 / 4, 1 / 16]
    assert [len(mask.visited) for mask in masks] == [1024, 256, 1024, 256]


def test_a_pattern_without_a_coverage_has_coverage_one(tmp_path: Path) -> None:
    assert pool({"name": "raster"}, tmp_path, n=1).coverages == [1.0]


def test_a_mask_of_a_wide_field_is_a_crop_of_it(tmp_path: Path) -> None:
    (path,) = Spiral(1 / 10).paths(ScanGrid((200, 200)), dwell_time_us=1.0, rng=np.random.default_rng(0))
    windows = {
        path.mask[row : row + EDGE, col : col + EDGE].tobytes()
        for row in range(200 - EDGE + 1)
        for col in range(200 - EDGE + 1)
    }
    masks = pool({"name": "spiral", "coverage": "1/10"}, tmp_path, field_px=200)
    assert all(picture(mask).tobytes() in windows for mask in masks)
    assert not np.array_equal(masks[0].visited, masks[1].visited)


def test_a_blurred_mask_holds_the_published_shares_of_the_signal(tmp_path: Path) -> None:
    (mask,) = pool({"name": "spiral", "coverage": "1/10"}, tmp_path, blurred=True, n=1)
    (path,) = Spiral(1 / 10).paths(ScanGrid((EDGE, EDGE)), dwell_time_us=1.0, rng=np.random.default_rng(0))
    expected = blurred_mask(path.mask)
    np.testing.assert_array_equal(mask.visited, np.flatnonzero(expected))
    np.testing.assert_allclose(mask.dwell, expected.ravel()[mask.visited])


def test_dwell_times_of_a_jittered_scan_are_shared_by_its_sub_steps(tmp_path: Path) -> None:
    (mask,) = pool({"name": "jittered", "coverage": "1/5"}, tmp_path, n=1)
    assert mask.dwell.max() > 1  # several visits to a pixel
    assert mask.samples.dwell.min() < 0.5
    assert len(mask.samples.dwell) == mask.dwell.sum()


def test_a_mask_with_next_to_nothing_in_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="measures fewer than 4 pixels"):
        pool({"name": "random", "coverage": 0.0005}, tmp_path)


def test_a_pattern_that_does_not_fit_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"on 64 x 64 px: .*at least|on 64 x 64 px: .*must be"):
        pool({"name": "line_hop", "coverage": 0.001}, tmp_path)


def test_masks_of_a_file_of_points_follow_the_file(tmp_path: Path, points_file: Path) -> None:
    mapping = {"name": "points", "path": str(points_file)}
    before = pool(mapping, tmp_path, n=1)[0].visited.tolist()
    points_file.write_text("row,col\n1,1\n2,2\n3,3\n5,9\n")
    assert pool(mapping, tmp_path, n=1)[0].visited.tolist() == [65, 130, 195, 329] != before
