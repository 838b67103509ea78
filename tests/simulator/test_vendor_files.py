"""Vendor files as specimens: written by RosettaSciIO where it can, else byte by byte as their formats are described."""

from __future__ import annotations

import json
import logging
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from lowdose.scan_patterns import ScanGrid
from lowdose.simulator.sources import Images, SpecimenFileError, read_image
from lowdose.simulator.vendor_files import VENDOR_FORMATS

REASON = "needs the development tools: make test installs them"
h5py = pytest.importorskip("h5py", reason=REASON)
hspy = pytest.importorskip("rsciio.hspy", reason=REASON)
emd = pytest.importorskip("rsciio.emd", reason=REASON)
mrcz = pytest.importorskip("rsciio.mrcz", reason=REASON)

pytestmark = [
    # the library leaves closing of files that it maps to the garbage collector
    pytest.mark.filterwarnings("ignore:.*unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*FileIO:pytest.PytestUnraisableExceptionWarning"),
]

GRID = ScanGrid((48, 48), pixel_size_nm=0.02)
IMAGE = np.arange(64 * 48, dtype=np.uint16).reshape(64, 48)
SERIES = np.stack([np.roll(IMAGE, 20 * i, axis=0) for i in range(3)])


def opened(path, grid=GRID, **keys):
    return Images(str(path), **keys).open(grid)


def signal(data, *, units="nm", title="HAADF", navigate=None, signal_type="", original=None, **metadata):
    """Return a signal as the library's writers take it; pixels of 0.02 in `units`."""
    navigate = navigate or [True] * (data.ndim - 2) + [False] * 2
    axes = [
        {
            "_type": "UniformDataAxis",
            "name": f"axis{i}",
            "units": units if i >= data.ndim - 2 else "s",
            "scale": 0.02,
            "offset": 0.0,
            "size": n,
            "navigate": navigate[i],
            "index_in_array": i,
            "is_binned": False,
        }
        for i, n in enumerate(data.shape)
    ]
    return {
        "data": data,
        "axes": axes,
        "metadata": {"General": {"title": title}, "Signal": {"signal_type": signal_type}, **metadata},
        "original_metadata": original or {},
        "attributes": {"_lazy": False, "ragged": False},
        "tmp_parameters": {},
        "package_info": {"package": "", "package_version": ""},
        "learning_results": {},
        "models": {},
    }


def write_hspy(path, data, **keys):
    hspy.file_writer(str(path), signal(data, **keys))


def write_berkeley_emd(path, data, **keys):
    emd.file_writer(str(path), signal(data, **keys))


def write_mrc(path, data, **keys):
    mrcz.file_writer(str(path), signal(data if data.ndim == 3 else data[None], **keys))


def add_velox_image(file, name, data, detector, unit="m"):
    metadata = {
        "BinaryResult": {
            "Detector": detector,
            "DetectorIndex": "0",
            "PixelSize": {"width": "2e-11", "height": "2e-11"},
            "PixelUnitX": unit,
            "PixelUnitY": unit,
        },
        "Detectors": {"Detector-0": {"DetectorName": detector}},
        "Scan": {"DwellTime": "1.2e-05", "FrameTime": "1.5"},
        "Acquisition": {"AcquisitionStartDatetime": {"DateTime": "1700000000"}},
    }
    text = np.frombuffer(json.dumps(metadata).encode(), np.uint8)
    frames = data[:, :, None] if data.ndim == 2 else np.moveaxis(data, 0, 2)
    group = file.create_group(f"Data/Image/{name}")
    group.create_dataset("Data", data=frames, chunks=(*frames.shape[:2], 1))
    group["Metadata"] = np.repeat(text[:, None], frames.shape[2], axis=1)


def write_velox_emd(path, data):
    with h5py.File(path, "w") as file:
        file["Version"] = np.array([b'{"format": "Velox", "version": "11"}'])
        add_velox_image(file, "0" * 32, data, "HAADF")


def dm_tag(name, value):
    """Return a DM3 tag: a group of tags, a number, a text or an array of uint16."""
    start = struct.pack(">h", len(name)) + name.encode()
    if isinstance(value, dict):
        return b"\x14" + start + dm_group(value)
    if isinstance(value, int):
        return b"\x15" + start + b"%%%%" + struct.pack(">2l", 1, 5) + struct.pack("<L", value)
    if isinstance(value, float):
        return b"\x15" + start + b"%%%%" + struct.pack(">2l", 1, 7) + struct.pack("<d", value)
    data = value.encode("utf-16-le") if isinstance(value, str) else value.astype("<u2").tobytes()
    return b"\x15" + start + b"%%%%" + struct.pack(">4l", 3, 20, 4, len(data) // 2) + data


def dm_group(tags):
    return b"\0\0" + struct.pack(">l", len(tags)) + b"".join(dm_tag(*tag) for tag in tags.items())


def write_dm3(path, data, *, units="nm", data_type=10, shape=None):
    axis = {"Origin": 0.0, "Scale": 0.02, "Units": units}
    image = {
        "ImageData": {
            "Calibrations": {
                "Brightness": {"Origin": 0.0, "Scale": 1.0, "Units": ""},
                "Dimension": {f"TagGroup{i}": axis for i in range(data.ndim)},
            },
            "Data": data,
            "DataType": data_type,
            "Dimensions": {f"Data{i}": n for i, n in enumerate((shape or data.shape)[::-1])},
        },
        "ImageTags": {"DigiScan": {"Sample Time": 12.0}, "DataBar": {"Signal Name": "HAADF"}},
        "Name": "survey",
    }
    tags = dm_group({"ImageList": {"TagGroup0": image}})
    path.write_bytes(struct.pack(">3l", 3, len(tags), 1) + tags)


def write_ser(path, data, *, pixel_m=2e-11, promised=None):
    images = data if data.ndim == 3 else data[None]
    n = promised or len(images)
    dimension = struct.pack("<LddLLL6s", n, 0.0, 1.0, 0, 0, 6, b"Number")
    start = 30 + len(dimension)
    size = 50 + images[0].nbytes + 8
    offsets = [start + 8 * len(images) + i * size for i in range(len(images))]
    content = struct.pack("<3H6L", 0x4949, 0x0197, 0x0210, 16674, 16722, n, n, start, 1) + dimension
    content += struct.pack(f"<{2 * len(images)}L", *offsets, *(offset + size - 8 for offset in offsets))
    for image in images:
        content += struct.pack("<ddLddLH2L", 0, pixel_m, 0, 0, pixel_m, 0, 2, *image.shape[::-1])
        content += image[::-1].tobytes() + struct.pack("<2HL", 16722, 0, 0)
    path.write_bytes(content)


FORMATS = {
    "a.hspy": (write_hspy, ""),
    "berkeley.emd": (write_berkeley_emd, ""),
    "a.mrc": (write_mrc, ""),
    "velox.emd": (write_velox_emd, ", dwell time 12 µs, detector HAADF"),
    "a.dm3": (write_dm3, ", dwell time 12 µs, detector HAADF"),
    "a.SER": (write_ser, ""),
}


@pytest.mark.parametrize("name", FORMATS)
def test_image_comes_back_the_right_way_up_with_what_the_file_tells(name, tmp_path):
    write, told = FORMATS[name]
    write(tmp_path / name, IMAGE)
    image = read_image(tmp_path / name, 0)
    np.testing.assert_array_equal(image.values, IMAGE)
    assert image.values.flags.owndata
    assert image.n_images == 1
    assert str(image.facts) == "pixel size 0.02 nm" + told


@pytest.mark.parametrize("name", FORMATS)
def test_series_of_images_plays_as_a_sequence(name, tmp_path):
    FORMATS[name][0](tmp_path / name, SERIES)
    source = opened(tmp_path / name)
    assert len(source) == 3
    frames = [source.frame(t).copy() for t in (0, 1, 2, 3)]
    assert [np.array_equal(frames[0], frame) for frame in frames] == [True, False, False, True]
    assert source.facts.pixel_size_nm == pytest.approx(0.02)
    for i, expected in enumerate(SERIES):
        np.testing.assert_array_equal(read_image(tmp_path / name, i).values, expected)


def test_nothing_stays_open_however_often_a_series_is_played(tmp_path):
    for name in ("a.hspy", "berkeley.emd", "velox.emd"):
        FORMATS[name][0](tmp_path / name, SERIES)
        read_image(tmp_path / name, 0)
        before = os.listdir("/proc/self/fd")
        for i in range(5):
            read_image(tmp_path / name, i % 3)
        assert len(os.listdir("/proc/self/fd")) <= len(before)


def test_non_finite_pixels_are_replaced_and_counted(tmp_path):
    image = IMAGE.astype(np.float32)
    image[30, 20] = np.nan
    write_hspy(tmp_path / "a.hspy", image)
    source = opened(tmp_path / "a.hspy")
    assert source.replaced_pixels == 1
    assert np.isfinite(source.frame(0)).all()


# several datasets in a file


@pytest.fixture
def detectors(tmp_path):
    """Return a Velox file of an FFT, a HAADF and a BF image."""
    path = tmp_path / "several.emd"
    with h5py.File(path, "w") as file:
        file["Version"] = np.array([b'{"format": "Velox", "version": "11"}'])
        complex_pair = np.dtype([("realFloatHalfEven", "<f4"), ("imagFloatHalfEven", "<f4")])
        add_velox_image(file, "0" * 32, np.zeros((64, 48), complex_pair), "FFT")
        add_velox_image(file, "1" * 32, IMAGE, "HAADF")
        add_velox_image(file, "2" * 32, IMAGE[::-1], "BF")
    return path


def test_first_image_is_taken_and_what_is_none_is_passed_over(detectors):
    assert read_image(detectors, 0).facts.detector == "HAADF"


def test_dataset_is_chosen_by_its_title(detectors):
    source = opened(detectors, dataset="BF")
    assert source.facts.detector == "BF"
    assert source.frame(0)[0].mean() > source.frame(0)[-1].mean()


def test_unknown_dataset_is_refused_with_the_names_there_are(detectors):
    with pytest.raises(SpecimenFileError, match=r"no dataset 'ABF': expected one of BF, FFT, HAADF"):
        opened(detectors, dataset="ABF")


def test_empty_dataset_beside_the_image_does_no_harm(tmp_path):
    write_hspy(tmp_path / "a.hspy", IMAGE)
    with h5py.File(tmp_path / "a.hspy", "a") as file:
        file["notes"] = np.zeros((0, 3))
    assert read_image(tmp_path / "a.hspy", 0).n_images == 1


# what files tell


@pytest.mark.parametrize(
    ("units", "expected_nm"),
    [("nm", 0.02), ("µm", 20), ("\u03bcm", 20), ("Å", 0.002), ("\u212b", 0.002), ("mm", 20_000)]
    + [(unit, None) for unit in ("", "px", "s", "<undefined>", "m")],  # 0.02 m is no pixel of a microscope
)
def test_pixel_size_is_in_nm_or_unknown(units, expected_nm, tmp_path):
    write_hspy(tmp_path / "a.hspy", IMAGE, units=units)
    assert read_image(tmp_path / "a.hspy", 0).facts.pixel_size_nm == (expected_nm and pytest.approx(expected_nm))


def test_pixel_that_is_no_square_has_no_size(tmp_path):
    oblong = signal(IMAGE)
    oblong["axes"][0]["scale"] = 0.03
    hspy.file_writer(str(tmp_path / "a.hspy"), oblong)
    assert read_image(tmp_path / "a.hspy", 0).facts.pixel_size_nm is None


def test_series_file_of_a_diffraction_pattern_has_no_pixel_size(tmp_path):
    write_ser(tmp_path / "a.ser", IMAGE, pixel_m=2e7)  # its header has no unit: 1/m looks like m
    assert read_image(tmp_path / "a.ser", 0).facts.pixel_size_nm is None


def test_hspy_keeps_what_it_was_converted_from(tmp_path):
    tags = {"DigiScan": {"Sample Time": 5.0}, "DataBar": {"Signal Name": "ADF"}}
    write_hspy(tmp_path / "a.hspy", IMAGE, original={"ImageList": {"TagGroup0": {"ImageTags": tags}}})
    write_hspy(tmp_path / "b.hspy", IMAGE, Acquisition_instrument={"TEM": {"dwell_time": 3e-6}})
    assert str(read_image(tmp_path / "a.hspy", 0).facts) == "pixel size 0.02 nm, dwell time 5 µs, detector ADF"
    assert str(read_image(tmp_path / "b.hspy", 0).facts) == "pixel size 0.02 nm, dwell time 3 µs"


# refusals


def hspy_file(data, **keys):
    return "a.hspy", lambda path: write_hspy(path, data, **keys)


def from_bytes(name, data):
    return name, lambda path: path.write_bytes(data)


def cut(name):
    def make(path):
        FORMATS[name][0](path, SERIES)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return name, make


def huge_hdf5(shape, chunks, name="a.hspy"):
    def make(path):
        FORMATS[name][0](path, IMAGE)
        with h5py.File(path, "a") as file:
            group = file["Experiments/HAADF" if name == "a.hspy" else "signals/HAADF"]
            del group["data"]
            group.create_dataset("data", shape, "u1", chunks=chunks)

    return name, make


def huge_mrc(path):
    write_mrc(path, IMAGE)
    with path.open("r+b") as file:
        file.write(struct.pack("<3L", 2**31, 2**31, 2**31))


PROMISES = "promises an array of shape"
REFUSED = {
    "4-D": (hspy_file(np.zeros((2, 2, 40, 40), np.uint8)), "HAADF: 4-D data"),
    "1-D": (hspy_file(np.zeros(64, np.uint8), navigate=[False]), "HAADF: 1-D data"),
    "spectrum image": (hspy_file(np.zeros((40, 40, 40)), navigate=[True, True, False]), "HAADF: spectra"),
    "line of spectra": (hspy_file(np.zeros((40, 40)), navigate=[True, False]), "HAADF: spectra"),
    "energy axis": (hspy_file(np.zeros((40, 40, 40)), units="eV"), "HAADF: spectra"),
    "signal type": (hspy_file(np.zeros((40, 40, 40)), signal_type="EELS"), "HAADF: spectra"),
    "diffraction": (hspy_file(IMAGE, units="1/nm"), "HAADF: reciprocal, in 1/nm"),
    "diffraction, pint": (hspy_file(IMAGE, units="1 / nm"), "HAADF: reciprocal"),
    "diffraction, angle": (hspy_file(IMAGE, units="mrad"), "HAADF: reciprocal"),
    "diffraction, DM": (("a.dm3", lambda path: write_dm3(path, IMAGE, units="1/nm")), "survey: reciprocal"),
    "complex": (hspy_file(np.zeros((40, 40), complex)), "values of type complex128"),
    "colour": (hspy_file(np.zeros((40, 40), [("R", "u1"), ("G", "u1"), ("B", "u1")])), "values of type"),
    "colour, DM": (("a.dm3", lambda path: write_dm3(path, IMAGE, data_type=23)), "is a colour image: .* convert it"),
    "only NaN": (hspy_file(np.full((40, 40), np.nan)), "no finite pixel"),
    "too small": (hspy_file(np.zeros((40, 31))), "40 x 31 pixels: expected at least 32 x 32"),
    "empty": (from_bytes("a.mrc", b""), "empty"),
    **{f"text, {name}": (from_bytes(name, b"hello" * 400), "cannot be read") for name in FORMATS},
    **{f"cut short, {name}": (cut(name), "cannot be read|cut short") for name in FORMATS},
    "huge hspy": (huge_hdf5((40_000, 40_000), (1000, 1000)), "promises 40000 x 40000 pixels"),
    "many chunks": (huge_hdf5((2**40, 2**3), (1, 1)), PROMISES),
    "overflowing hspy": (huge_hdf5((2**31, 2**31), (2**15, 2**15)), PROMISES),
    "overflowing emd": (huge_hdf5((2**31, 2**31), (2**15, 2**15), "berkeley.emd"), PROMISES),
    "huge mrc": (("a.mrc", huge_mrc), "a\\.mrc"),
    "huge dm3": (("a.dm3", lambda path: write_dm3(path, IMAGE, shape=(2**31, 2**31))), "promises 2147483648 x"),
    "more than the dm3 holds": (("a.dm3", lambda path: write_dm3(path, IMAGE, shape=(128, 128))), "cut short"),
    "more than the ser holds": (("a.ser", lambda path: write_ser(path, IMAGE, promised=2**20)), "a\\.ser"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_in_one_sentence_that_names_the_file(case, tmp_path):
    (name, make), message = REFUSED[case]
    make(tmp_path / name)
    with pytest.raises(SpecimenFileError, match=message) as refusal:
        opened(tmp_path / name)
    assert str(tmp_path / name) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_pickle_inside_a_file_is_not_loaded(tmp_path):
    code = b"cposix\nsystem\n(S'touch " + bytes(tmp_path / "ran") + b"'\ntR."
    write_hspy(tmp_path / "a.hspy", IMAGE, original={"model": code})
    assert read_image(tmp_path / "a.hspy", 0).n_images == 1
    assert not (tmp_path / "ran").exists()


def test_one_unreadable_vendor_file_of_a_folder_keeps_the_image_before(tmp_path, caplog):
    np.save(tmp_path / "1.npy", IMAGE)
    (tmp_path / "2.dm4").write_bytes(b"gone bad")
    write_mrc(tmp_path / "3.mrc", IMAGE[::-1])
    source = opened(tmp_path)
    first = source.frame(0)
    with caplog.at_level(logging.WARNING):
        assert source.frame(1) is first
    assert "2.dm4" in caplog.text
    assert source.frame(2)[0].mean() > first[0].mean()


# real files


@pytest.mark.parametrize("extension", VENDOR_FORMATS)
def test_real_files_of_microscopes_are_read(extension, micrographs):
    files = [path for path in sorted(Path(micrographs).rglob("*")) if path.suffix.lower() == extension]
    if not files:
        pytest.skip(f"LOWDOSE_DATA holds no {extension} file")
    for path in files[:5]:
        assert np.isfinite(opened(path).frame(0)).all()
