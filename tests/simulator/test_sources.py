"""Specimen sources: the contract of all of them, and images of every format, dtype and defect."""

from __future__ import annotations

import io
import logging
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from lowdose.scan_patterns import ScanGrid
from lowdose.scan_patterns.pattern import load_pattern_class
from lowdose.simulator import sources
from lowdose.simulator.image_files import ImageFacts
from lowdose.simulator.sources import SOURCES, Images, SpecimenFileError, natural_key, scale_levels

GRID = ScanGrid((40, 40))
RAMP = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
SPECS = {name: {"seed": 1} for name in SOURCES} | {"images": {"path": "ramp.tif"}}


def opened(path, grid=GRID, **keys):
    return Images(str(path), **keys).open(grid)


def dot(index, shape=(40, 40)):
    """Return an image that is dark but for its row `index`: told from others at a glance."""
    image = np.zeros(shape, np.uint8)
    image[index] = 200
    return image


def shown(frame):
    """Return which `dot` a frame shows."""
    return int(frame.mean(axis=1).argmax())


def assert_contract(source, grid):
    frame = source.frame(0.0)
    assert frame.shape == grid.shape
    assert frame.dtype == np.float32
    assert np.isfinite(frame).all()
    assert frame.min() >= 0
    assert frame.max() <= 1
    assert not frame.flags.writeable
    assert source.frame(0.0) is frame


@pytest.mark.parametrize("shape", [(40, 40), (16, 48), (100, 100)], ids=str)
@pytest.mark.parametrize("name", SOURCES)
def test_every_source_keeps_the_contract(name, shape, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("ramp.tif", RAMP)
    spec = TypeAdapter(load_pattern_class(name, SOURCES)).validate_python(SPECS[name])
    assert_contract(spec.open(ScanGrid(shape)), ScanGrid(shape))


@pytest.mark.parametrize("name", SOURCES)
def test_unknown_key_is_refused(name):
    with pytest.raises(ValidationError, match="colour"):
        TypeAdapter(load_pattern_class(name, SOURCES)).validate_python(SPECS[name] | {"colour": 1})


# formats and dtypes

PILLOW_IMAGES = {
    "8bit.png": Image.fromarray((RAMP // 16).astype(np.uint8)),
    "16bit.png": Image.fromarray(RAMP),
    "1bit.png": Image.fromarray(RAMP > 2000),
    "grey.jpg": Image.fromarray((RAMP // 16).astype(np.uint8)),
    "grey.JPEG": Image.fromarray((RAMP // 16).astype(np.uint8)),
}
DTYPES = ["?", "u1", "i1", "<u2", ">u2", "<i2", "<u4", "<i4", "<u8", ">i8", "<f2", ">f2", "<f4", ">f4", "<f8", ">f8"]


@pytest.mark.parametrize("name", PILLOW_IMAGES)
def test_pillow_formats_show_dark_at_the_top_and_bright_at_the_bottom(name, tmp_path):
    PILLOW_IMAGES[name].save(tmp_path / name)
    source = opened(tmp_path / name)
    assert_contract(source, GRID)
    assert source.frame(0)[0].mean() < 0.2
    assert source.frame(0)[-1].mean() > 0.8


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["image.npy", "image.tif", "image.TIFF"])
def test_every_dtype_and_byte_order_gives_the_same_picture(name, dtype, tmp_path):
    bright = (np.indices((64, 64))[0] >= 32).astype(dtype)
    if name == "image.npy":
        np.save(tmp_path / name, bright)
    else:
        tifffile.imwrite(tmp_path / name, bright, byteorder=">" if dtype[0] == ">" else "<", photometric="minisblack")
    frame = opened(tmp_path / name, ScanGrid((32, 32))).frame(0)
    np.testing.assert_allclose(frame[:16], 0.05, atol=1e-6)
    np.testing.assert_allclose(frame[16:], 1.0, atol=1e-6)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_compressed_tiff_equals_the_plain_one(compression, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", RAMP, compression=compression)
    np.testing.assert_allclose(opened(tmp_path / "a.tif", ScanGrid((64, 64))).frame(0), scale_levels(RAMP), atol=1e-6)


def test_white_is_zero_tiff_is_inverted(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", 255 - dot(7), photometric="miniswhite")
    assert shown(opened(tmp_path / "a.tif").frame(0)) == 7


def test_fortran_ordered_npy_is_not_transposed(tmp_path):
    np.save(tmp_path / "a.npy", np.asfortranarray(dot(7)))
    assert shown(opened(tmp_path / "a.npy").frame(0)) == 7


# sequences


def write_pages(path):
    with tifffile.TiffWriter(path) as tif:
        for i in range(3):
            tif.write(dot(i), photometric="minisblack")


def write_imagej_stack(path):
    tifffile.imwrite(path, np.stack([dot(i) for i in range(3)]), imagej=True)


def write_one_page_stack(path):
    tifffile.imwrite(path, np.stack([dot(i) for i in range(3)]), photometric="minisblack", truncate=True)


def write_one_page_compressed_volume(path):
    volume = np.stack([dot(i) for i in range(3)])
    tifffile.imwrite(path, volume, photometric="minisblack", volumetric=True, tile=(16, 16, 16), compression="zlib")


def write_npy_stack(path):
    np.save(path, np.stack([dot(i) for i in range(3)]))


def write_folder(path):
    path.mkdir()
    tifffile.imwrite(path / "image10.tif", dot(2))
    Image.fromarray(dot(1)).save(path / "image2.png")
    np.save(path / "image1.npy", dot(0))
    (path / "notes.txt").write_text("no image")
    (path / "._image1.tif").write_bytes(b"a file manager's leftover")


SEQUENCES = {
    "pages.tif": write_pages,
    "imagej.tif": write_imagej_stack,
    "one_page.tif": write_one_page_stack,
    "volume.tif": write_one_page_compressed_volume,
    "stack.npy": write_npy_stack,
    "folder": write_folder,
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequence_advances_every_period_and_loops(name, tmp_path):
    SEQUENCES[name](tmp_path / name)
    source = opened(tmp_path / name, frame_period_s=0.1)
    assert len(source) == 3
    times = [0.0, 0.05, 0.1, 0.2, 0.3, 0.7]  # 0.3 / 0.1 < 3 in floating point
    assert [shown(source.frame(t)) for t in times] == [0, 0, 1, 2, 0, 1]


def test_same_object_comes_back_within_a_period_and_another_after_it(tmp_path):
    write_npy_stack(tmp_path / "a.npy")
    source = opened(tmp_path / "a.npy", frame_period_s=2)
    first = source.frame(0.0)
    assert source.frame(1.99) is first
    assert source.frame(2.0) is not first


def test_images_of_a_folder_may_differ_in_size_and_dtype(tmp_path):
    np.save(tmp_path / "1.npy", dot(3, (40, 40)).astype(np.float64))
    tifffile.imwrite(tmp_path / "2.tif", dot(slice(12, 15), (120, 120)))
    source = opened(tmp_path)
    assert [shown(source.frame(t)) for t in (0, 1)] == [3, 4]


def test_only_the_first_image_is_read_at_the_start(tmp_path, monkeypatch):
    write_folder(tmp_path / "folder")
    read, original = [], sources.read_image
    monkeypatch.setattr(sources, "read_image", lambda path, *args: read.append(path.name) or original(path, *args))
    source = opened(tmp_path / "folder")
    source.frame(0)
    assert read == ["image1.npy"]
    source.frame(1)
    assert read == ["image1.npy", "image2.png"]


def test_unreadable_later_image_is_logged_once_and_the_one_before_stays(tmp_path, caplog):
    write_folder(tmp_path / "folder")
    source = opened(tmp_path / "folder")
    first = source.frame(0)
    (tmp_path / "folder" / "image2.png").write_bytes(b"gone bad")
    with caplog.at_level(logging.WARNING):
        assert source.frame(1) is first
        assert source.frame(1.5) is first
        assert shown(source.frame(2)) == 2
        assert shown(source.frame(4)) == 2
    assert [r.message for r in caplog.records if "image2.png" in r.message] == [caplog.records[0].message]


def test_later_image_that_vanished_or_is_too_small_for_crop_keeps_the_one_before(tmp_path):
    for i, shape in enumerate([(40, 40), (40, 40), (36, 36)]):
        np.save(tmp_path / f"{i}.npy", dot(i, shape))
    source = opened(tmp_path, fit="crop")
    (tmp_path / "1.npy").unlink()
    assert [shown(source.frame(t)) for t in (0, 1, 2)] == [0, 0, 0]


def test_unreadable_first_image_of_a_folder_is_an_error(tmp_path):
    write_folder(tmp_path / "folder")
    (tmp_path / "folder" / "image1.npy").write_bytes(b"gone bad")
    with pytest.raises(SpecimenFileError, match=r"image1\.npy"):
        opened(tmp_path / "folder")


def test_natural_order_puts_2_before_10_and_numbers_before_letters():
    names = ["b1", "a10", "A2", "x", "10", "2"]
    assert sorted(names, key=natural_key) == ["2", "10", "A2", "a10", "b1", "x"]


# fit and levels


def test_larger_image_is_area_averaged(tmp_path):
    image = np.random.default_rng(0).random((96, 96), np.float32)
    np.save(tmp_path / "a.npy", image)
    expected = scale_levels(image.reshape(32, 3, 32, 3).mean(axis=(1, 3)))
    np.testing.assert_allclose(opened(tmp_path / "a.npy", ScanGrid((32, 32))).frame(0), expected, atol=1e-5)


def test_smaller_image_is_interpolated_linearly(tmp_path):
    np.save(tmp_path / "a.npy", np.tile(np.arange(32.0), (32, 1)))
    frame = opened(tmp_path / "a.npy", ScanGrid((128, 128))).frame(0)
    steps = np.diff(frame[64, 4:-4])
    np.testing.assert_allclose(steps, steps[0], rtol=1e-3)
    assert steps[0] > 0


@pytest.mark.parametrize(("image", "grid"), [((40, 100), (40, 40)), ((120, 40), (40, 40)), ((64, 64), (32, 64))])
def test_centre_in_the_aspect_ratio_of_the_grid_is_taken(image, grid, tmp_path):
    centre = np.zeros(image, np.uint8)
    centre[image[0] // 2 - 4 : image[0] // 2 + 4, image[1] // 2 - 4 : image[1] // 2 + 4] = 1
    np.save(tmp_path / "a.npy", centre)
    frame = opened(tmp_path / "a.npy", ScanGrid(grid)).frame(0)
    expected = np.full(grid, 0.05)
    expected[grid[0] // 2 - 4 : grid[0] // 2 + 4, grid[1] // 2 - 4 : grid[1] // 2 + 4] = 1
    np.testing.assert_allclose(frame, expected, atol=1e-6)


def test_crop_keeps_native_pixels(tmp_path):
    image = np.random.default_rng(0).integers(0, 1000, (50, 60))
    np.save(tmp_path / "a.npy", image)
    frame = opened(tmp_path / "a.npy", ScanGrid((40, 40)), fit="crop").frame(0)
    np.testing.assert_allclose(frame, scale_levels(image[5:45, 10:50].astype(np.float32)), atol=1e-5)


def test_percentiles_become_5_and_100_percent():
    image = np.linspace(0, 1, 1001, dtype=np.float32).reshape(7, 143)
    scaled = scale_levels(image).ravel()
    assert scaled[1] == pytest.approx(0.05, abs=1e-6)
    assert scaled[-2] == pytest.approx(1.0, abs=1e-6)
    assert scaled[500] == pytest.approx(0.525, abs=1e-6)
    assert scaled[0] < 0.05
    assert scaled[-1] == 1


def test_constant_image_is_half_of_full_scale(tmp_path):
    np.save(tmp_path / "a.npy", np.full((32, 32), 7.0))
    np.testing.assert_array_equal(opened(tmp_path / "a.npy").frame(0), 0.5)


def test_single_bright_pixel_still_shows(tmp_path):
    image = np.zeros((64, 64), np.uint8)
    image[10, 20] = 1
    np.save(tmp_path / "a.npy", image)
    frame = opened(tmp_path / "a.npy", ScanGrid((64, 64))).frame(0)
    assert frame[10, 20] == 1
    assert np.count_nonzero(frame > 0.06) == 1


def test_non_finite_pixels_become_the_smallest_value_are_counted_and_logged_once(tmp_path, caplog):
    stack = np.linspace(0, 1, 2 * 40 * 40, dtype=np.float32).reshape(2, 40, 40)
    stack[0, 20, :3] = np.nan, np.inf, -np.inf
    np.save(tmp_path / "a.npy", stack)
    source = opened(tmp_path / "a.npy")
    assert source.replaced_pixels == 3
    np.testing.assert_array_equal(source.frame(0)[20, :3], source.frame(0)[0, 0])
    source.frame(1)
    assert source.replaced_pixels == 0
    source.frame(2)
    assert source.replaced_pixels == 3
    assert len([r for r in caplog.records if "3 non-finite" in r.message]) == 1


IMAGES = hnp.arrays(
    dtype=st.one_of(
        hnp.boolean_dtypes(),
        hnp.integer_dtypes(endianness="?"),
        hnp.unsigned_integer_dtypes(endianness="?"),
        hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    ),
    shape=st.tuples(st.integers(32, 70), st.integers(32, 70)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(image=IMAGES, shape=st.tuples(st.integers(1, 80), st.integers(1, 80)))
def test_any_image_on_any_grid_keeps_the_contract(image, shape, tmp_path):
    np.save(tmp_path / "a.npy", image)
    if not np.isfinite(image).any():
        with pytest.raises(SpecimenFileError, match="no finite pixel"):
            opened(tmp_path / "a.npy")
        return
    source = opened(tmp_path / "a.npy", ScanGrid(shape))
    assert_contract(source, ScanGrid(shape))
    assert source.replaced_pixels == np.count_nonzero(~np.isfinite(image))


# what files tell


def write_imagej(path, unit="nm", per_unit=(50, 50)):
    tifffile.imwrite(path, RAMP, imagej=True, resolution=per_unit, metadata={"unit": unit})


def write_ome(path, size="0.00002", **unit):
    metadata = {"PhysicalSizeX": size, "PhysicalSizeY": size, **unit}
    tifffile.imwrite(path, RAMP, ome=True, metadata={"axes": "YX", **metadata})


TOLD_NM = {
    "ImageJ nm": (write_imagej, 0.02),
    "ImageJ micron": (lambda path: write_imagej(path, "micron", (5e4, 5e4)), 0.02),
    "ImageJ µm": (lambda path: write_imagej(path, "\\u00B5m", (5e4, 5e4)), 0.02),
    "ImageJ without unit": (lambda path: write_imagej(path, ""), None),
    "ImageJ pixel": (lambda path: write_imagej(path, "pixel"), None),
    "ImageJ reciprocal": (lambda path: write_imagej(path, "1/nm"), None),
    "ImageJ oblong": (lambda path: write_imagej(path, per_unit=(50, 40)), None),
    "ImageJ zero": (lambda path: write_imagej(path, per_unit=((0, 1), (0, 1))), None),
    "OME, µm by default": (write_ome, 0.02),
    "OME Å": (lambda path: write_ome(path, "0.2", PhysicalSizeXUnit="Å", PhysicalSizeYUnit="Å"), 0.02),
    "OME without size": (lambda path: tifffile.imwrite(path, RAMP, ome=True, metadata={"axes": "YX"}), None),
    "for printing": (lambda path: tifffile.imwrite(path, RAMP, resolution=(72, 72), resolutionunit="INCH"), None),
}


@pytest.mark.parametrize("case", TOLD_NM)
def test_pixel_size_of_a_tiff_is_in_nm_or_unknown(case, tmp_path):
    write, expected_nm = TOLD_NM[case]
    write(tmp_path / "a.tif")
    facts = opened(tmp_path / "a.tif").facts
    assert facts == ImageFacts(expected_nm and pytest.approx(expected_nm, rel=1e-5))


@pytest.mark.parametrize(
    ("shape", "fit", "shown_nm"),
    [
        ((64, 64), "resample", 0.02),
        ((32, 32), "resample", 0.04),
        ((32, 64), "resample", 0.02),
        ((128, 128), "resample", 0.01),
        ((40, 40), "crop", 0.02),
    ],
)
def test_pixel_size_that_differs_from_the_grid_s_is_a_warning_with_the_value_to_set(
    shape, fit, shown_nm, tmp_path, caplog
):
    write_imagej(tmp_path / "a.tif")
    with caplog.at_level(logging.INFO):
        opened(tmp_path / "a.tif", ScanGrid(shape, pixel_size_nm=shown_nm * 1.009), fit=fit)
    assert [(r.levelname, "pixel size 0.02 nm" in r.message) for r in caplog.records] == [("INFO", True)]
    caplog.clear()
    opened(tmp_path / "a.tif", ScanGrid(shape, pixel_size_nm=shown_nm * 1.02), fit=fit)
    assert caplog.records[-1].levelname == "WARNING"
    assert f"set grid.pixel_size_nm: {shown_nm:g} for" in caplog.records[-1].message


def test_nothing_is_logged_of_a_file_that_tells_nothing(tmp_path, caplog):
    np.save(tmp_path / "a.npy", RAMP)
    with caplog.at_level(logging.INFO):
        assert opened(tmp_path / "a.npy").facts == ImageFacts()
    assert not caplog.records


# folders that change, links


def test_links_are_followed_and_broken_ones_left_out(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    np.save(tmp_path / "elsewhere.npy", dot(5))
    (folder / "1.npy").symlink_to(tmp_path / "elsewhere.npy")
    (folder / "2.npy").symlink_to(tmp_path / "nothing.npy")
    (folder / "3.npy").symlink_to(folder / "3.npy")
    (folder / "4.npy").mkdir()
    source = opened(folder)
    assert len(source) == 1
    assert shown(source.frame(0)) == 5


def test_file_that_vanishes_between_listing_and_reading_is_refused(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", RAMP)
    listed, original = [], sources.list_files
    monkeypatch.setattr(sources, "list_files", lambda path: listed.extend(original(path)) or gone(listed))
    with pytest.raises(SpecimenFileError, match=r"a\.npy cannot be read .*No such file"):
        opened(tmp_path)


def gone(files):
    for path in files:
        path.unlink()
    return files


def test_folder_that_cannot_be_listed_is_refused(tmp_path, monkeypatch):
    def iterdir(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(SpecimenFileError, match="cannot be listed \\(Permission denied\\): check its permissions"):
        opened(tmp_path)


def test_vendor_file_without_its_library_is_refused_with_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.dm4").write_bytes(b"anything")
    for name in [name for name in sys.modules if name.startswith("rsciio")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rsciio", None)
    with pytest.raises(SpecimenFileError, match=r'a\.dm4 needs .*: pip install "lowdose\[vendor-formats\]"'):
        opened(tmp_path / "a.dm4")


def test_dataset_of_a_file_that_has_none_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", RAMP)
    with pytest.raises(SpecimenFileError, match=r"a\.npy holds no dataset 'HAADF': .* leave dataset out"):
        opened(tmp_path / "a.npy", dataset="HAADF")


# refusals


def png_header(width, height):
    """Return a PNG that promises a size and holds nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def npy_header(shape):
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return out.getvalue()


def truncated(name, write):
    def make(path):
        write(path / name)
        whole = (path / name).read_bytes()
        (path / name).write_bytes(whole[: len(whole) // 2])
        return path / name

    return make


def from_bytes(name, data):
    def make(path):
        (path / name).write_bytes(data)
        return path / name

    return make


def npy(array):
    def make(path):
        np.save(path / "a.npy", array, allow_pickle=True)
        return path / "a.npy"

    return make


def pillow(mode, name="a.png"):
    def make(path):
        Image.new(mode, (64, 64)).save(path / name)
        return path / name

    return make


def tiff(array, **options):
    def make(path):
        tifffile.imwrite(path / "a.tif", array, **options)
        return path / "a.tif"

    return make


class Touch:
    """Leave a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickle_inside_an_npy_is_not_loaded(tmp_path):
    array = np.full((64, 64), None)
    array[0, 0] = Touch(tmp_path / "ran")
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(SpecimenFileError, match="type object"):
        opened(tmp_path / "a.npy")
    assert not (tmp_path / "ran").exists()


def npz_named_npy(path):
    with open(path / "a.npy", "wb") as file:
        np.savez(file, image=RAMP)
    return path / "a.npy"


def huge_tiff(path):
    tifffile.imwrite(path / "a.tif", NOISE)
    with tifffile.TiffFile(path / "a.tif", mode="r+") as tif:
        for name in ("ImageWidth", "ImageLength"):
            tif.pages[0].tags[name].overwrite(40_000)
    return path / "a.tif"


def circular_tiff(path):
    """Return a TIFF whose second page names the first one as the next."""
    write_pages(path / "a.tif")
    with tifffile.TiffFile(path / "a.tif") as tif:
        first, second = tif.pages[0].offset, tif.pages[1].offset
    with open(path / "a.tif", "r+b") as file:
        file.seek(second)
        file.seek(second + 2 + 12 * struct.unpack("<H", file.read(2))[0])
        file.write(struct.pack("<I", first))
    return path / "a.tif"


def test_circular_chain_of_pages_ends(tmp_path):
    assert len(opened(circular_tiff(tmp_path))) == 2


def empty_folder(path):
    (path / "folder").mkdir()
    (path / "folder" / "notes.txt").write_text("no image")
    return path / "folder"


NOISE = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
COLOUR = "expected one grey channel, convert it to grey first"
UNREADABLE = "cannot be read .*: expected a TIFF, PNG, JPEG, NPY or "
REFUSED = {
    "missing": (lambda path: path / "nothing.tif", "no file or folder: .* check the path"),
    "empty folder": (empty_folder, "holds no image"),
    "unknown extension": (from_bytes("a.txt", b"hello"), "no image by its name"),
    "0 bytes tif": (from_bytes("a.tif", b""), "empty \\(0 bytes\\)"),
    "0 bytes npy": (from_bytes("a.npy", b""), "empty \\(0 bytes\\)"),
    "text as tif": (from_bytes("a.tif", b"hello"), UNREADABLE),
    "text as png": (from_bytes("a.png", b"hello"), UNREADABLE),
    "text as jpg": (from_bytes("a.jpg", b"hello"), UNREADABLE),
    "text as npy": (from_bytes("a.npy", b"hello"), UNREADABLE),
    "truncated tif": (truncated("a.tif", lambda p: tifffile.imwrite(p, NOISE)), UNREADABLE),
    "truncated zlib tif": (truncated("a.tif", lambda p: tifffile.imwrite(p, NOISE, compression="zlib")), UNREADABLE),
    "truncated stack": (truncated("a.tif", write_one_page_stack), UNREADABLE),
    "truncated png": (truncated("a.png", lambda p: Image.fromarray(NOISE).save(p)), UNREADABLE),
    "truncated jpg": (truncated("a.jpg", lambda p: Image.fromarray(NOISE).save(p)), UNREADABLE),
    "truncated npy": (truncated("a.npy", lambda p: np.save(p, NOISE)), UNREADABLE),
    "archive of arrays": (npz_named_npy, UNREADABLE),
    "zero-sized": (npy(np.zeros((0, 64))), "without pixels"),
    "zero images": (npy(np.zeros((0, 64, 64))), "without pixels"),
    "RGB png": (pillow("RGB"), COLOUR),
    "RGBA png": (pillow("RGBA"), COLOUR),
    "grey and alpha png": (pillow("LA"), COLOUR),
    "palette png": (pillow("P"), COLOUR),
    "RGB jpg": (pillow("RGB", "a.jpg"), COLOUR),
    "CMYK jpg": (pillow("CMYK", "a.jpg"), COLOUR),
    "RGB tif": (tiff(np.zeros((64, 64, 3), np.uint8), photometric="rgb"), COLOUR),
    "RGBA tif": (tiff(np.zeros((64, 64, 4), np.uint8), photometric="rgb", extrasamples=["unassalpha"]), COLOUR),
    "planar RGB tif": (tiff(np.zeros((3, 64, 64), np.uint8), photometric="rgb", planarconfig="separate"), COLOUR),
    "palette tif": (tiff(NOISE, photometric="palette", colormap=np.zeros((3, 256), np.uint16)), COLOUR),
    "RGB npy": (npy(np.zeros((64, 64, 3))), COLOUR),
    "complex npy": (npy(np.zeros((64, 64), complex)), "type complex128: expected real numbers"),
    "complex tif": (tiff(np.zeros((64, 64), np.complex64)), "type complex64: expected real numbers"),
    "text npy": (npy(np.full((64, 64), "a")), "expected real numbers"),
    "object npy": (npy(np.full((64, 64), None)), "type object: expected real numbers"),
    "only NaN": (npy(np.full((64, 64), np.nan)), "no finite pixel"),
    "too small": (npy(np.zeros((64, 31))), "has 64 x 31 pixels: expected at least 32 x 32"),
    "too small png": (from_bytes("a.png", png_header(16, 16)), "has 16 x 16 pixels: expected at least 32 x 32"),
    "1-D": (npy(np.zeros(64)), "shape \\(64,\\)"),
    "4-D": (npy(np.zeros((2, 2, 64, 64))), "shape \\(2, 2, 64, 64\\)"),
    "bomb, a warning to Pillow": (from_bytes("a.png", png_header(10_000, 10_000)), "a\\.png .*expected"),
    "bomb, an error to Pillow": (from_bytes("a.png", png_header(60_000, 60_000)), "a\\.png .*expected"),
    "huge npy": (from_bytes("a.npy", npy_header((40_000, 40_000))), "promises 40000 x 40000 pixels"),
    "overflowing npy": (from_bytes("a.npy", npy_header((2**40, 2**40))), "promises .* pixels: expected at most"),
    "negative npy": (from_bytes("a.npy", npy_header((-64, 64))), "has -64 x 64 pixels: expected at least"),
    "huge tif": (huge_tiff, "promises 40000 x 40000 pixels: expected at most 1000000000"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_in_one_sentence_that_names_the_file(case, tmp_path):
    make, message = REFUSED[case]
    path = make(tmp_path)
    with pytest.raises(SpecimenFileError, match=message) as refusal:
        opened(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_crop_larger_than_the_image_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", RAMP)
    with pytest.raises(SpecimenFileError, match=r"64 x 64 pixels: fit 'crop' needs .* 64 x 65, use fit: resample"):
        opened(tmp_path / "a.npy", ScanGrid((64, 65)), fit="crop")


@pytest.mark.parametrize("period", [0, -1.0, float("nan"), float("inf")])
def test_frame_period_that_is_no_positive_time_is_refused(period):
    with pytest.raises(ValueError, match="frame_period_s must be > 0"):
        Images("a.tif", frame_period_s=period)


def test_unknown_fit_is_refused():
    with pytest.raises(ValueError, match="fit must be 'resample' or 'crop', got 'stretch'"):
        Images("a.tif", fit="stretch")


# real micrographs


@pytest.mark.skipif("LOWDOSE_DATA" not in os.environ, reason="LOWDOSE_DATA does not name the folder of micrographs")
def test_real_micrographs_keep_the_contract():
    files = sorted(Path(os.environ["LOWDOSE_DATA"], "real").glob("*.tif"))
    assert files
    for path in files[:: max(1, len(files) // 20)]:
        if min(tifffile.imread(path).shape) >= 32:
            assert_contract(opened(path), GRID)
