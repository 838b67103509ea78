from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowdose.scan_patterns import ScanGrid, points
from lowdose.scan_patterns.points import Points
from tests.strategies import paths, quick

GRID = ScanGrid((4, 6))


def path_of(file, grid=GRID, dwell_time_us=1.0, **parameters):
    (path,) = Points(str(file), **parameters).paths(grid, dwell_time_us=dwell_time_us, rng=np.random.default_rng(0))
    return path


@pytest.fixture
def csv(tmp_path):
    def write(text, name="points.csv", **kind):
        file = tmp_path / name
        file.write_text(text, encoding=kind.get("encoding", "utf-8"))
        return file

    return write


@pytest.fixture
def npy(tmp_path):
    def write(array, name="points.npy"):
        file = tmp_path / name
        np.save(file, array)
        return file

    return write


def test_csv_is_read_by_the_names_of_its_columns(csv):
    path = path_of(csv("# mine\n\n jump, col,row ,dwell_time_us\n1,5,0,2.5\n# between\n0,4.25,1,0.5  # at the end\n"))
    assert path.positions.tolist() == [[0, 5], [1, 4.25]]
    assert path.dwell_times_us.tolist() == [2.5, 0.5]
    assert path.jumps.tolist() == [True, False]


def test_missing_columns_are_the_scan_s_dwell_time_and_jumps_over_far_steps(csv):
    path = path_of(csv("row,col\n0,0\n1,1\n1,3\n1,3\n"), dwell_time_us=2.0)
    assert path.dwell_times_us.tolist() == [2.0] * 4
    assert path.jumps.tolist() == [False, False, True, False]


def test_a_spreadsheet_s_byte_order_mark_is_no_part_of_the_header(csv):
    assert len(path_of(csv("row,col\r\n0,0\r\n", encoding="utf-8-sig"))) == 1


@pytest.mark.parametrize("dtype", ["i2", "u1", "f4", "f8", ">f4"])
@pytest.mark.parametrize("columns", [2, 3, 4])
def test_npy_holds_two_to_four_columns_of_any_number_type(columns, dtype, npy):
    path = path_of(npy(np.array([[0, 1, 3, 0], [2, 5, 4, 1]], dtype)[:, :columns]), dwell_time_us=7.0)
    assert path.positions.tolist() == [[0, 1], [2, 5]]
    assert path.dwell_times_us.tolist() == ([3, 4] if columns > 2 else [7, 7])
    assert path.jumps.tolist() == [False, True]


@quick
@given(paths(), st.sampled_from(["csv", "npy"]))
def test_any_path_reads_back_with_the_same_digest(tmp_path_factory, path, suffix):
    file = tmp_path_factory.mktemp("round") / f"points.{suffix}"
    table = np.column_stack([path.positions, path.dwell_times_us, path.jumps]).astype(np.float32)
    if suffix == "npy":
        np.save(file, table)
    else:
        np.savetxt(file, table, "%.9g", ",", header="row,col,dwell_time_us,jump", comments="")
    assert path_of(file, path.grid, overscan="keep").digest == path.digest


def test_points_outside_the_field_are_refused_by_number_place_and_value(csv, npy):
    rows = [[0, 0], [3.4, 5.4], [3.5, 0], [0, -0.6]]
    text = "# mine\nrow,col\n" + "".join(f"{row},{col}\n" for row, col in rows)
    with pytest.raises(ValueError, match=r"^2 of 4 points of .*points.csv lie outside the field of 4 x 6 pixels, the "):
        path_of(csv(text))
    with pytest.raises(ValueError, match=r"first in line 5 \(row 3.5, col 0\): move or remove them"):
        path_of(csv(text))
    with pytest.raises(ValueError, match=r"first in row 2 counted from 0 \(row 3.5, col 0\)"):
        path_of(npy(rows))


def test_points_outside_the_field_may_be_kept_as_overscan(csv):
    path = path_of(csv("row,col\n0,0\n-7,2\n"), overscan="keep")
    assert path.inside.tolist() == [True, False]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "has no header, it is empty: expected a first line row,col,dwell_time_us,jump"),
        ("# row,col\n", "has no header, it is empty"),
        ("# row,col\n0,0\n", "has no header, it begins with '0,0'"),
        ("row,col\n", "holds no points"),
        ("row,col\n# nothing\n\n", "holds no points"),
        ("row,cool\n0,0\n", "unknown column 'cool' in its header: did you mean 'col'"),
        ("row;col\n0;0\n", "unknown column 'row;col'"),
        ("row,dwell_time_us\n0,0\n", "must name row and col, and none twice, got 'row,dwell_time_us'"),
        ("row,col,col\n0,0,0\n", "must name row and col, and none twice"),
        ("row,col\n0,0\n\n1\n", "line 4 of .* has 1 values: expected 2, row,col"),
        ("row,col\n0,0\n1,1,1\n", "line 3 of .* has 3 values"),
        ("row,col\n0,0,1\n1,1,1\n", "line 2 of .* has 3 values"),
        ("row,col\n0,0\n1,x\n", "line 3 of .*: col must be a number, got 'x'"),
        ("row,col\n0,\n", "line 2 of .*: col must be a number, got ''"),
        (
            "row,col\n0,0\n0,nan\n",
            r"1 of 2 points of .* have a col that is not finite, the first in line 3 \(col nan\)",
        ),
        ("row,col\n1e300,0\n", "have a row that is not finite"),
        ("row,col,dwell_time_us\n0,0,0\n", r"dwell_time_us that is not > 0, .* in line 2 \(dwell_time_us 0\)"),
        ("row,col,jump\n0,0,2\n", "have a jump that is neither 0 nor 1"),
    ],
)
def test_a_csv_that_cannot_be_used_is_refused_in_one_sentence(text, complaint, csv):
    with pytest.raises(ValueError, match=complaint) as refusal:
        path_of(csv(text))
    assert "\n" not in str(refusal.value)
    assert "points.csv" in str(refusal.value)


@pytest.mark.parametrize(
    ("array", "complaint"),
    [
        (np.zeros((0, 2)), "holds no points"),
        (np.zeros(4), r"holds float64 \(4,\): expected an array of numbers \(n, 2\), \(n, 3\) or \(n, 4\)"),
        (np.zeros((3, 5)), r"holds float64 \(3, 5\)"),
        (np.zeros((3, 2), complex), "holds complex128"),
        (np.array([["a", "b"]]), "holds <U1"),
        (np.array([[{}, {}]]), "is no NPY file of numbers"),
        (np.array([[0, np.inf]]), "1 of 1 points of .* have a col that is not finite"),
        (np.array([[0, 1e300]]), "have a col that is not finite"),
    ],
)
def test_an_npy_that_cannot_be_used_is_refused_in_one_sentence(array, complaint, npy):
    with pytest.raises(ValueError, match=complaint) as refusal:
        path_of(npy(array))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("content", [b"", b"row,col\n0,0\n", b"\x80\x04]\x94."])
def test_a_file_that_is_npy_by_name_only_is_refused(content, tmp_path):
    file = tmp_path / "points.npy"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="is no NPY file of numbers"):
        path_of(file)


def test_a_truncated_npy_and_an_archive_are_refused(tmp_path, npy):
    file = npy(np.zeros((1000, 2)))
    file.write_bytes(file.read_bytes()[:400])
    with pytest.raises(ValueError, match="is no NPY file of numbers"):
        path_of(file)
    with file.open("wb") as archive:
        np.savez(archive, np.zeros((3, 2)))
    with pytest.raises(ValueError, match="is an archive of arrays"):
        path_of(file)


def test_a_binary_csv_is_refused(tmp_path):
    (tmp_path / "points.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is no text in UTF-8"):
        path_of(tmp_path / "points.csv")


def test_a_missing_file_a_folder_and_a_device_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no such file"):
        path_of(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="it is a folder"):
        path_of(tmp_path)
    with pytest.raises(ValueError, match="it is a device"):
        path_of(os.devnull)


@pytest.mark.parametrize("name", ["points.csv", "points.npy"])
def test_a_file_too_large_is_refused_before_it_is_read(name, tmp_path):
    with (tmp_path / name).open("wb") as sparse:
        sparse.truncate(points.MAX_BYTES + 1)
    with pytest.raises(ValueError, match="is larger than 2 GiB"):
        path_of(tmp_path / name)


def test_too_many_points_are_refused(csv, npy, monkeypatch):
    monkeypatch.setattr(points, "MAX_POSITIONS", 2)
    for file in (csv("row,col\n0,0\n0,1\n0,2\n0,3\n"), npy(np.zeros((3, 2)))):
        with pytest.raises(ValueError, match="holds more than 2 points"):
            path_of(file)


def test_an_unknown_way_with_overscan_is_refused():
    with pytest.raises(ValueError, match="overscan must be 'refuse' or 'keep', got 'clip'"):
        Points("points.csv", overscan="clip")
