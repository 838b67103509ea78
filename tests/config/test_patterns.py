"""`lowdose pattern list | show | export`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from lowdose.config import sheet
from lowdose.config.patterns import PathReport, make_report, parse_parameters
from lowdose.config.registry import make_pattern
from lowdose.scan_patterns.grid import ScanGrid
from lowdose.scan_patterns.pattern import PATTERNS, load_pattern_class
from lowdose.scan_patterns.points import Points

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


POINTS = "lowdose.scan_patterns.points:Points"


def read_csv(path: Path) -> tuple[list[str], str, np.ndarray[Any, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line for line in lines if line.startswith("#")]
    header = lines[len(comments)]
    return comments, header, np.loadtxt(lines[len(comments) + 1 :], delimiter=",", ndmin=2)


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw few dots: the tests look at no picture closely."""
    monkeypatch.setattr(sheet, "DPI", 40)


def report_of(name: str, shape: tuple[int, int]) -> PathReport:
    return make_report(
        name,
        coverage=None,
        true_coverage=None,
        parameters=[],
        grid=ScanGrid(shape),
        dwell_time_us=1.0,
        beam_current_pa=25.0,
        seed=0,
        frame=0,
    )


@pytest.fixture
def needs(folder: Path) -> Callable[[str], tuple[str, ...]]:
    """Return a function that gives the options a pattern cannot do without."""
    (folder / "one.csv").write_text("row,col\n0,0\n", encoding="utf-8")
    return lambda name: ("--param", "path=one.csv") if name == "points" else ()


def test_list_names_every_pattern_with_its_parameters(
    command: Callable[..., tuple[Any, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    code, out, _ = command("pattern", "list")
    assert code == 0
    for name in PATTERNS:
        assert name in out
        for field in dataclasses.fields(load_pattern_class(name)):
            assert field.name in out


@pytest.mark.parametrize("suffix", ["csv", "npy"])
@pytest.mark.parametrize("name", PATTERNS)
def test_exported_positions_read_back_as_they_are(
    name: str, suffix: str, command: Callable[..., tuple[Any, str, str]], needs: Callable[[str], tuple[str, ...]]
) -> None:
    arguments = ("--shape", 64, "--seed", 3, "--dwell-time-us", 2.5, "--pixel-size-nm", 0.1)
    code, out, err = command("pattern", "export", name, *needs(name), *arguments, "--out", f"path.{suffix}")
    assert code == 0, err
    grid = ScanGrid((64, 64), 0.1)
    (path, *_) = make_pattern({"name": name, **parse_parameters(needs(name)[1:])}, grid, local=True).paths(
        grid, dwell_time_us=2.5, rng=np.random.default_rng(3)
    )
    (read,) = Points(f"path.{suffix}").paths(grid, dwell_time_us=9.0, rng=np.random.default_rng(0))
    assert read.digest == path.digest
    assert f"wrote {len(path)} positions" in out
    assert path.digest in out


def test_export_writes_comments_a_header_and_rows(command: Callable[..., tuple[Any, str, str]], folder: Path) -> None:
    _, out, _ = command("pattern", "export", "raster", "--shape", 2, "--dwell-time-us", 2.5, "--out", "path.csv")
    comments, header, rows = read_csv(folder / "path.csv")
    assert header == "row,col,dwell_time_us,jump"
    assert rows.tolist() == [[0, 0, 2.5, 1], [0, 1, 2.5, 0], [1, 0, 2.5, 1], [1, 1, 2.5, 0]]
    assert any(out.split()[-1] in comment for comment in comments)


def test_an_npy_export_is_one_float32_row_for_each_position(
    command: Callable[..., tuple[Any, str, str]], folder: Path
) -> None:
    command("pattern", "export", "raster", "--shape", 4, "--out", "path.npy")
    table = np.load(folder / "path.npy")
    assert (table.shape, table.dtype) == ((16, 4), np.float32)


def test_overscan_reads_back_when_kept(command: Callable[..., tuple[Any, str, str]]) -> None:
    overscan = ("--param", "overscan=keep", "--shape", 64)
    _, first, err = command("pattern", "export", "spiral", *overscan, "--out", "path.csv")
    assert not err
    again = ("--param", "path=path.csv", *overscan, "--out", "again.csv")
    _, second, err = command("pattern", "export", POINTS, *again)
    assert not err
    assert first.split()[-1] == second.split()[-1]


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
    name: str, command: Callable[..., tuple[Any, str, str]], folder: Path, needs: Callable[[str], tuple[str, ...]]
) -> None:
    code, out, err = command("pattern", "show", name, *needs(name), "--shape", 64)
    assert code == 0, err
    with Image.open(folder / f"{name}.png") as picture:
        picture.load()
        assert min(picture.size) > 300
    assert "positions on 64 x 64" in out


def test_show_prints_what_the_path_costs_and_how_far_it_leaves_pixels(
    command: Callable[..., tuple[Any, str, str]], folder: Path
) -> None:
    (folder / "points.csv").write_text("row,col,dwell_time_us,jump\n0,0,1,0\n0,1,2,0\n0,3,1,0\n", encoding="utf-8")
    options = ("--shape", 4, "--pixel-size-nm", 0.1, "--current-pa", 10, "--dwell-time-us", 2)
    _, out, err = command("pattern", "show", POINTS, "--param", "path=points.csv", *options, "--out", "p.png")
    assert not err
    dose = 6.241509 * 10 * 4 / 16  # 4 µs of 10 pA on 16 Å^2
    assert f"at 10 pA and 0.1 nm pixels {dose:.4g} e-/Å² over the field, {dose * 16 / 3:.4g} in a visited pixel" in out
    assert "0.125 (1/8) of the full raster's dose, settling aside; dose rate 3.901e+06 e-/Å²/s" in out
    assert "distance to the nearest measurement: mean 1.613, max 3.162 px" in out
    assert "slew needed: median 1, max 1 px/µs" in out


@pytest.mark.parametrize("frame", [0, 3])
def test_another_frame_of_the_cycle_is_another_path(frame: int, command: Callable[..., tuple[Any, str, str]]) -> None:
    options = ("--coverage", "1/4", "--shape", 16, "--frame", frame, "--out", "p.csv")
    _, out, err = command("pattern", "export", "interlaced", *options)
    assert not err
    grid = ScanGrid((16, 16))
    pattern = make_pattern({"name": "interlaced", "coverage": "1/4"}, grid)
    path = pattern.paths(grid, dwell_time_us=1.0, rng=np.random.default_rng(0))[frame]
    assert path.digest in out


@pytest.mark.parametrize(("given", "value"), [("[1, 2]", [1, 2]), ("linear", "linear"), ("1/20", "1/20"), ("", None)])
def test_a_parameter_is_read_as_yaml(given: str, value: object) -> None:
    assert parse_parameters([f"key={given}"]) == {"key": value}


def test_the_coverage_option_goes_before_the_parameter(command: Callable[..., tuple[Any, str, str]]) -> None:
    both = ("--param", "coverage=1/50", "--coverage", "1/10", "--shape", 64, "--out", "p.csv")
    command("pattern", "export", "spiral", *both)
    code, out, _ = command("pattern", "show", "spiral", *both[:-1], "p.png")
    assert code == 0
    assert "coverage_nominal 0.1 " in out


def test_show_opens_a_window_and_writes_no_file_by_itself(
    command: Callable[..., tuple[Any, str, str]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[PathReport] = []
    monkeypatch.setattr(sheet, "require_window", lambda: None)
    monkeypatch.setattr(sheet, "show_sheet", drawn.append)
    code, _, err = command("pattern", "show", "spiral", "--shape", 32, "--window")
    assert (code, len(drawn), list(folder.iterdir())) == (0, 1, []), err


def test_the_window_shows_the_sheet_until_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib.pyplot as plt

    shown: list[int] = []
    monkeypatch.setattr("matplotlib.use", lambda backend: shown.append(backend == "qtagg"))
    monkeypatch.setattr(plt, "show", lambda: shown.append(len(plt.gcf().subfigs[1].axes)))
    plt.switch_backend("agg")
    sheet.show_sheet(report_of("raster", shape=(8, 8)))
    plt.close("all")
    assert shown == [True, 6]


def test_a_window_without_a_screen_is_refused(refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    assert "needs a screen" in refused("pattern", "show", "spiral", "--window")


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (1, 40)])
def test_fields_that_are_not_square_are_drawn_too(shape: tuple[int, int], folder: Path) -> None:
    sheet.write_sheet(report_of("raster", shape=shape), folder / "sheet.png")
    assert (folder / "sheet.png").stat().st_size > 10_000


def test_a_name_that_is_long_or_looks_like_a_formula_is_drawn_as_it_is(
    command: Callable[..., tuple[Any, str, str]], folder: Path
) -> None:
    name = f"${'x' * 150}\\frac$.csv"
    (folder / name).write_text("row,col\n0,0\n", encoding="utf-8")
    code, _, err = command("pattern", "show", POINTS, "--param", f"path={name}", "--shape", 8, "--out", "p.png")
    assert code == 0, err


def test_a_long_path_is_drawn_by_some_positions_and_every_end_of_a_stroke(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet, "MAX_DRAWN", 100)
    path = report_of("raster", shape=(40, 40)).path
    drawn = sheet.drawn_positions(path)
    assert len(drawn) < 200
    assert {0, 39, 40, 79, 80, 1599} <= set(drawn.tolist())


def test_a_map_in_cells_keeps_every_visit() -> None:
    hits = (np.random.default_rng(0).random((37, 53)) < 0.02).astype(np.uint16)
    cells = sheet.cell_means(hits, 8)
    rows, cols = np.diff([*range(0, 37, 8), 37]), np.diff([*range(0, 53, 8), 53])
    assert (cells * np.outer(rows, cols)).sum() == pytest.approx(hits.sum())


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("shape", [1, 2, 5])
def test_tiny_fields_are_drawn_too(
    name: str,
    shape: int,
    command: Callable[..., tuple[Any, str, str]],
    folder: Path,
    needs: Callable[[str], tuple[str, ...]],
) -> None:
    code, _, err = command("pattern", "show", name, *needs(name), "--shape", shape, "--out", "tiny.png")
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
        (("raster", "--coverage", "1/20"), "pattern 'raster' has no parameter 'coverage'"),
        (("spiral", "--param", "overscn=keep"), "did you mean 'overscan'"),
        (("spiral", "--param", "overscan"), "--param takes key=VALUE, got 'overscan'"),
        (("spiral", "--param", "=keep"), "--param takes key=VALUE"),
        (("spiral", "--param", "overscan=[keep"), "the value is not YAML"),
        (("spiral", "--param", "name=raster"), "the pattern's name is the argument"),
        (("spiral", "--frame", "1"), "--frame must be 0 to 0, the cycle of 'spiral' has length 1, got 1"),
        (("spiral", "--pixel-size-nm", "0"), "pixel_size_nm must be > 0"),
        (("spiral", "--current-pa", "nan"), "beam_current_pa must be > 0"),
        ((POINTS, "--param", "path=none.csv"), "there is no such file"),
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


@pytest.mark.parametrize("verb", ["show", "export"])
@pytest.mark.parametrize("dwell_time_us", ["0", "-1", "nan", "inf"])
def test_a_dwell_time_that_is_none_is_refused(verb: str, dwell_time_us: str, refused: Any) -> None:
    option = f"--dwell-time-us={dwell_time_us}"
    assert "dwell_time_us must be > 0" in refused("pattern", verb, "spiral", option, "--out", "x.png")


def test_a_path_that_visits_nothing_is_refused(refused: Any, folder: Path) -> None:
    (folder / "points.csv").write_text("row,col\n-9,0\n", encoding="utf-8")
    outside = ("--param", "path=points.csv", "--param", "overscan=keep", "--shape", 8)
    assert "visits no pixel of the field" in refused("pattern", "show", POINTS, *outside)


def test_a_picture_format_that_is_none_is_refused(refused: Any) -> None:
    assert "cannot write x.xyz" in refused("pattern", "show", "raster", "--shape", 8, "--out", "x.xyz")


@pytest.mark.parametrize("verb", ["show", "export"])
def test_a_field_larger_than_the_memory_is_refused(verb: str, refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1 << 20})())
    assert "GiB of memory" in refused("pattern", verb, "raster", "--out", "x.png")


# --- the deflector --------------------------------------------------------------------------------------------------


def test_show_tells_what_the_deflector_makes_of_a_path(command: Callable[..., tuple[Any, str, str]]) -> None:
    _, out, _ = command("pattern", "show", "lattice", "--shape", 64, "--out", "x.png")
    assert "deflector (50 kHz, 2 px/µs, 5 µs to settle): frame " in out
    assert "0 positions missed by more than 0.25 px" in out
    _, out, _ = command("pattern", "show", "fermat", "--shape", 64, "--deflector", "slew_px_per_us=1", "--out", "x.png")
    assert "1 px/µs, 5 µs to settle): cannot follow: the path moves" in out


def test_budget_is_answered_by_the_dwell_time_that_keeps_it(command: Callable[..., tuple[Any, str, str]]) -> None:
    few = ("--shape", 64, "--deflector", "settle_us=0", "--out", "x.png")
    _, out, _ = command("pattern", "show", "lissajous", *few, "--budget-e-per-a2", 200)
    dwell_time_us = out.partition("dwell_time_us ")[2].split()[0]
    _, out, _ = command("pattern", "show", "lissajous", *few, "--dwell-time-us", dwell_time_us)
    dose = float(out.partition("µs to settle): frame ")[2].partition("ms, ")[2].split()[0])
    assert dose == pytest.approx(200, rel=0.02)


def test_a_cycle_tells_what_all_its_frames_cost(command: Callable[..., tuple[Any, str, str]]) -> None:
    _, out, _ = command("pattern", "show", "interlaced", "--coverage", "1/9", "--shape", 48, "--out", "x.png")
    assert "all 9 frames: 624.2 e-/Å² over the field, 1 to 1 visits to a pixel" in out


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("coil={natural_frequency_khz: -1}", "--deflector, coil: natural_frequency_khz must be > 0, got -1"),
        ("slew_px_us=3", "--deflector: unknown key 'slew_px_us': did you mean 'slew_px_per_us'?"),
        ("bits", "--deflector takes key=VALUE, got 'bits'"),
        ("bits=99", "bits must be 8 to 16, got 99"),
    ],
)
def test_a_wrong_deflector_is_refused_in_words(
    option: str, words: str, command: Callable[..., tuple[Any, str, str]]
) -> None:
    code, _, err = command("pattern", "show", "raster", "--shape", 8, "--deflector", option)
    assert code == 2
    assert words in " ".join(err.split())


def test_region_and_rotation_place_any_pattern(command: Callable[..., tuple[Any, str, str]]) -> None:
    placed = ("--param", "region=[10, 20, 30, 40]", "--param", "rotation_deg=30", "--shape", 64)
    code, _, err = command("pattern", "export", "lattice", *placed, "--out", "path.csv")
    assert code == 0, err
    (path,) = Points("path.csv").paths(ScanGrid((64, 64)), dwell_time_us=1.0, rng=np.random.default_rng(0))
    assert path.pixels.min(axis=0).tolist() >= [10, 20]
    assert path.pixels.max(axis=0).tolist() <= [39, 59]


@pytest.mark.parametrize(
    ("parameter", "words"),
    [
        ("region=[40, 40, 30, 30]", "region (40, 40, 30, 30) ends at (70, 70), beyond the field of 64 x 64 px"),
        ("region=[1, 2]", "pattern, region"),
        ("region=abc", "pattern, region"),
        ("rotation_deg=.nan", "rotation_deg must be finite"),
        ("rotation_deg=abc", "pattern, rotation_deg"),
    ],
)
def test_a_wrong_placement_is_refused_in_words(
    parameter: str, words: str, command: Callable[..., tuple[Any, str, str]]
) -> None:
    code, _, err = command("pattern", "export", "lattice", "--shape", 64, "--param", parameter, "--out", "x.csv")
    assert code == 2
    assert words in " ".join(err.split())
