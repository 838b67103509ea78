"""`lowdose pattern list | show | export`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from lowdose.config.registry import make_pattern
from lowdose.scan_patterns.grid import ScanGrid
from lowdose.scan_patterns.pattern import PATTERNS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def read_csv(path: Path) -> tuple[list[str], str, np.ndarray[Any, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line for line in lines if line.startswith("#")]
    header = lines[len(comments)]
    return comments, header, np.loadtxt(lines[len(comments) + 1 :], delimiter=",", ndmin=2)


def test_list_names_every_pattern(command: Callable[..., tuple[Any, str, str]]) -> None:
    code, out, _ = command("pattern", "list")
    assert code == 0
    assert all(name in out for name in PATTERNS)


@pytest.mark.parametrize("name", PATTERNS)
def test_exported_positions_read_back_as_they_are(
    name: str, command: Callable[..., tuple[Any, str, str]], folder: Path
) -> None:
    arguments = ("--shape", 64, "--seed", 3, "--dwell-time-us", 2.5, "--out", "path.csv")
    code, out, err = command("pattern", "export", name, *arguments)
    assert code == 0, err
    comments, header, rows = read_csv(folder / "path.csv")
    grid = ScanGrid((64, 64))
    (path, *_) = make_pattern({"name": name}, grid).paths(grid, dwell_time_us=2.5, rng=np.random.default_rng(3))
    assert header == "row,col,dwell_time_us,jump"
    np.testing.assert_allclose(rows[:, :2], path.positions, rtol=1e-5)
    np.testing.assert_allclose(rows[:, 2], path.dwell_times_us, rtol=1e-5)
    np.testing.assert_array_equal(rows[:, 3], path.jumps)
    assert set(rows[:, 3]) <= {0, 1}
    assert any(path.digest in comment for comment in comments)
    assert str(len(path)) in out


def test_export_tells_nominal_and_true_coverage(command: Callable[..., tuple[Any, str, str]], folder: Path) -> None:
    command("pattern", "export", "spiral", "--coverage", "1/20", "--shape", 128, "--out", "path.csv")
    comments, _, rows = read_csv(folder / "path.csv")
    share = len(np.unique(rows[:, :2].round(), axis=0)) / 128**2
    text = " ".join(comments)
    assert "coverage_nominal 0.05 " in text
    assert f"coverage {share:.5g} " in text


@pytest.mark.parametrize("name", ["spiral", "jittered"])
def test_true_coverage_is_met_within_two_percent_of_the_pixels(
    name: str, command: Callable[..., tuple[Any, str, str]], folder: Path
) -> None:
    command("pattern", "export", name, "--true-coverage", "1/20", "--shape", 256, "--out", "path.csv")
    _, _, rows = read_csv(folder / "path.csv")
    visited = len(np.unique(rows[:, :2].round(), axis=0))
    assert visited / 256**2 == pytest.approx(1 / 20, rel=0.02)


@pytest.mark.parametrize("name", PATTERNS)
def test_show_draws_a_picture_of_every_pattern(
    name: str, command: Callable[..., tuple[Any, str, str]], folder: Path
) -> None:
    code, out, err = command("pattern", "show", name, "--shape", 64)
    assert code == 0, err
    with Image.open(folder / f"{name}.png") as picture:
        picture.load()
        assert min(picture.size) > 300
    assert "positions on 64 x 64" in out


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("shape", [1, 2, 5])
def test_tiny_fields_are_drawn_too(
    name: str, shape: int, command: Callable[..., tuple[Any, str, str]], folder: Path
) -> None:
    code, _, err = command("pattern", "show", name, "--shape", shape, "--out", "tiny.png")
    assert "Traceback" not in err
    assert (code, (folder / "tiny.png").exists()) in ((0, True), (2, False)), err


@pytest.mark.parametrize("verb", ["show", "export"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("spirl",), "did you mean 'spiral'"),
        (("spiral", "--coverage", "0"), "coverage must be"),
        (("spiral", "--coverage=-1"), "coverage must be"),
        (("spiral", "--coverage", "abc"), "coverage must be"),
        (("spiral", "--coverage", ""), "coverage"),
        (("spiral", "--coverage", "1/20", "--true-coverage", "1/20"), "not both"),
        (("raster", "--coverage", "1/20"), "it has no parameters"),
        (("spiral", "--shape", "16385"), "16384"),
        (("spiral", "--shape", "0"), "shape"),
        (("spiral", "--seed=-1"), "seed"),
    ],
)
def test_a_wrong_option_is_refused(verb: str, arguments: tuple[str, ...], words: str, refused: Any) -> None:
    assert words in refused("pattern", verb, *arguments, "--out", "x.png")


@pytest.mark.parametrize("verb", ["show", "export"])
@pytest.mark.parametrize("out", ["missing/x.png", "."])
def test_a_place_that_cannot_be_written_is_refused(verb: str, out: str, refused: Any) -> None:
    assert "cannot write" in refused("pattern", verb, "spiral", "--shape", 32, "--out", out)


@pytest.mark.parametrize("dwell_time_us", ["0", "-1", "nan", "inf"])
def test_export_refuses_a_dwell_time_that_is_none(dwell_time_us: str, refused: Any) -> None:
    option = f"--dwell-time-us={dwell_time_us}"
    assert "dwell_time_us must be > 0" in refused("pattern", "export", "spiral", option, "--out", "x.csv")


@pytest.mark.parametrize("verb", ["show", "export"])
def test_a_field_larger_than_the_memory_is_refused(verb: str, refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1 << 20})())
    assert "GiB of memory" in refused("pattern", verb, "raster", "--out", "x.png")
