"""Points: a user's own probe positions from a CSV or NPY file (imports numpy only)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

import numpy as np

from lowdose.scan_patterns.checks import nearest_name
from lowdose.scan_patterns.path import ScanPath, far_steps

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from lowdose.scan_patterns.grid import ScanGrid

COLUMNS = ("row", "col", "dwell_time_us", "jump")
MAX_BYTES = 2 << 30
MAX_POSITIONS = 1 << 26


@dataclass(frozen=True, slots=True)
class Points:
    """A user's own probe positions, in the order of a file.

    Parameters
    ----------
    path : str
        A CSV file: lines of ``#`` comments, a header naming the columns ``row,col,dwell_time_us,jump`` (the last two
        may be missing, any order), then numbers. Or an NPY file: an (n, 2), (n, 3) or (n, 4) array of these columns.
        Without ``dwell_time_us`` [µs] every position takes the scan's dwell time; without ``jump`` (0 or 1) the beam
        jumps where the next position is no neighbour (`far_steps`).
    overscan : "refuse" or "keep"
        What to do with positions that round to no pixel of the field: "keep" scans and pays for them.
    """

    path: str
    overscan: Literal["refuse", "keep"] = "refuse"

    def __post_init__(self) -> None:
        if self.overscan not in ("refuse", "keep"):
            raise ValueError(f"overscan must be 'refuse' or 'keep', got {self.overscan!r}")

    def paths(self, grid: ScanGrid, *, dwell_time_us: float, rng: np.random.Generator) -> tuple[ScanPath, ...]:
        """Return one path over the points of the file, read anew."""
        table = read_table(_existing(self.path))
        positions = table.positions
        if self.overscan == "refuse":
            nearest = np.floor(positions + np.float32(0.5))
            table.refuse(
                ((nearest < 0) | (nearest >= grid.shape)).any(axis=1),
                COLUMNS[:2],
                f"lie outside the field of {grid.rows} x {grid.cols} pixels",
                "move or remove them, set a larger grid, or overscan: keep to visit and pay for them",
            )
        dwell = table.columns.get("dwell_time_us", dwell_time_us)
        return (ScanPath(grid, positions, dwell, jumps=table.jumps),)


@dataclass(frozen=True, slots=True)
class Table:
    """The columns of one file by name, each (n,) float32, finite and in range."""

    file: Path
    columns: dict[str, NDArray[np.float32]]

    def __post_init__(self) -> None:
        for name, column in self.columns.items():
            self.refuse(~np.isfinite(column), [name], f"have a {name} that is not finite", "correct it")
        if "dwell_time_us" in self.columns:
            bad = self.columns["dwell_time_us"] <= 0
            self.refuse(bad, ["dwell_time_us"], "have a dwell_time_us that is not > 0", "correct it")
        if "jump" in self.columns:
            bad = ~np.isin(self.columns["jump"], (0, 1))
            self.refuse(bad, ["jump"], "have a jump that is neither 0 nor 1", "correct it")

    @property
    def positions(self) -> NDArray[np.float32]:
        """(n, 2) float32 (row, col) [pixel]."""
        return np.stack([self.columns["row"], self.columns["col"]], axis=1)

    @property
    def jumps(self) -> NDArray[np.bool_]:
        """(n,) True where the beam jumps: as the file says, else before every step to no neighbour."""
        if "jump" in self.columns:
            return self.columns["jump"].astype(bool)
        return far_steps(self.positions)

    def refuse(self, bad: NDArray[np.bool_], names: Iterable[str], complaint: str, remedy: str) -> None:
        """Raise ValueError if any point is bad: how many, the first one's place and values, what to do."""
        if bad.any():
            first = int(bad.argmax())
            got = ", ".join(f"{name} {self.columns[name][first]:g}" for name in names)
            raise ValueError(
                f"{int(bad.sum())} of {len(bad)} points of {self.file} {complaint}, "
                f"the first in {_place(self.file, first)} ({got}): {remedy}"
            )


def read_table(file: Path) -> Table:
    """Return the points of a CSV or, when named ``.npy``, an NPY file.

    Raises
    ------
    ValueError
        If it is too large, empty or anything else than documented in `Points`; the message names place and remedy.
    """
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(f"{file} is larger than {MAX_BYTES >> 30} GiB: write fewer points, or an NPY file")
        names, values = _read_npy(file) if is_npy(file) else _read_csv(file)
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror or error}") from None
    if len(values) == 0:
        raise ValueError(f"{file} holds no points: expected at least one line or row of numbers")
    if len(values) > MAX_POSITIONS:
        raise ValueError(f"{file} holds more than {MAX_POSITIONS} points: write fewer, or several files")
    with np.errstate(over="ignore"):  # what float32 cannot hold is refused as not finite
        columns = {name: values[:, k].astype(np.float32) for k, name in enumerate(names)}
    return Table(file, columns)


def is_npy(file: Path) -> bool:
    """Tell by its name whether a file of points is NPY; everything else is CSV."""
    return file.suffix.lower() == ".npy"


def _existing(path: str) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        found = "it is a folder" if file.is_dir() else "it is a device" if file.exists() else "there is no such file"
        raise ValueError(f"cannot read the points of {path!r}: {found}; expected a CSV or NPY file, check the path")
    return file


def _read_npy(file: Path) -> tuple[tuple[str, ...], NDArray[np.generic]]:
    expected = "expected an array of numbers (n, 2), (n, 3) or (n, 4): row, col, dwell_time_us, jump"
    try:
        values = np.load(file, allow_pickle=False, mmap_mode="r")  # mapped: the shape is known before it is read
    except (ValueError, EOFError) as error:
        raise ValueError(f"{file} is no NPY file of numbers ({error}): {expected}") from None
    if not isinstance(values, np.ndarray):
        values.close()
        raise ValueError(f"{file} is an archive of arrays (NPZ): {expected} in one NPY file")
    if values.dtype.kind not in "iuf" or values.ndim != 2 or not 2 <= values.shape[1] <= 4:
        raise ValueError(f"{file} holds {values.dtype} {values.shape}: {expected}")
    return COLUMNS[: values.shape[1]], values


def _read_csv(file: Path) -> tuple[list[str], NDArray[np.generic]]:
    names: list[str] = []
    try:
        with file.open(encoding="utf-8-sig") as lines, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a header alone: refused as holding no points
            names = _header(file, lines)
            values = np.loadtxt(lines, np.float32, delimiter=",", ndmin=2, max_rows=MAX_POSITIONS + 1)
    except UnicodeDecodeError:
        raise ValueError(f"{file} is no text in UTF-8: expected a CSV file, or an NPY file named .npy") from None
    except ValueError as error:
        raise ValueError((names and _first_wrong_line(file, names)) or str(error)) from None
    if len(values) and values.shape[1] != len(names):
        raise ValueError(_first_wrong_line(file, names))
    return names, values


def _header(file: Path, lines: TextIO) -> list[str]:
    _, header = next(_data_lines(lines), (0, ""))
    names = [name.strip() for name in header.split(",")]
    if not header or all(_is_number(name) for name in names):
        got = f"begins with {header[:60]!r}" if header else "is empty"
        raise ValueError(f"{file} has no header, it {got}: expected a first line row,col,dwell_time_us,jump")
    for name in names:
        if name not in COLUMNS:
            raise ValueError(f"{file} has an unknown column {name[:60]!r} in its header: {nearest_name(name, COLUMNS)}")
    if len(set(names)) < len(names) or not {"row", "col"} <= set(names):
        raise ValueError(f"the header of {file} must name row and col, and none twice, got {header!r}")
    return names


def _first_wrong_line(file: Path, names: list[str]) -> str:
    """Return what is wrong with the first line that np.loadtxt cannot use, by its number in the file."""
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in islice(_data_lines(lines), 1, None):
            cells = [cell.strip() for cell in line.split(",")]
            if len(cells) != len(names):
                return f"line {number} of {file} has {len(cells)} values: expected {len(names)}, {','.join(names)}"
            for name, cell in zip(names, cells, strict=True):
                if not _is_number(cell):
                    return f"line {number} of {file}: {name} must be a number, got {cell[:60]!r}"
    return ""


def _place(file: Path, index: int) -> str:
    """Return where a point stands in its file, for a message."""
    if is_npy(file):
        return f"row {index} counted from 0"
    with file.open(encoding="utf-8-sig") as lines:
        number, _ = next(islice(_data_lines(lines), index + 1, None))
    return f"line {number}"


def _data_lines(lines: TextIO) -> Iterator[tuple[int, str]]:
    """Yield number, from 1, and text of every line that is neither blank nor a comment, as np.loadtxt takes them."""
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if text:
            yield number, text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
