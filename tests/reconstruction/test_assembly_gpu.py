"""The GPU's way of assembling, run with NumPy against the pipeline's own way; with CuPy in tests marked `gpu`."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from lowdose.acquisition.frames import SparseFrame
from lowdose.acquisition.messages import ScanStart
from lowdose.reconstruction import assembly_gpu
from lowdose.reconstruction.assembly_gpu import AssemblyOnDevice, device_engine, fill_on_device
from lowdose.reconstruction.engine import CHANNELS
from lowdose.reconstruction.engines.classical_engine import LinearEngine
from lowdose.reconstruction.infill import PathMaps, linear_map, nearest_map
from lowdose.reconstruction.lattice_infill import everywhere_measured, lattice_maps
from lowdose.reconstruction.maps import MapCache
from lowdose.reconstruction.pipeline import Reconstructor
from lowdose.reconstruction.tiling import Tiled
from lowdose.scan_patterns import ScanGrid, ScanPath
from tests.reconstruction.engine_files import info_of
from tests.reconstruction.lattices import lattice_mask

SHAPE = (40, 56)


@pytest.fixture(params=["numpy", pytest.param("cupy", marks=pytest.mark.gpu)])
def xp(request):
    if request.param == "numpy":
        return np
    cupy = pytest.importorskip("cupy", reason='cupy is not installed: pip install "lowdose[gpu]"')
    try:
        cupy.cuda.runtime.getDeviceCount()
    except RuntimeError as error:
        pytest.skip(f"no NVIDIA GPU can be used: {error}")
    return cupy


class Mixing:
    """Hands on the mean of its channels, and how far they differ."""

    def __init__(self, normalisation="mean_std", channels=CHANNELS, scale=1):
        self.info = info_of(channels=channels, normalisation=normalisation, scale=scale)
        self.seen = None

    def run(self, inputs):
        self.seen = inputs
        out = np.stack([inputs.mean(axis=1), inputs.std(axis=1)], axis=1)
        return out.repeat(self.info.scale, axis=2).repeat(self.info.scale, axis=3)


class MixingOnDevice(Mixing):
    """Does the same on the device, where CuPy's arrays have NumPy's methods."""

    def __init__(self, *args, xp=np, **kwargs):
        super().__init__(*args, **kwargs)
        self.xp = xp

    def run_on_device(self, inputs):
        self.seen = inputs
        out = self.xp.stack([inputs.mean(axis=1), inputs.std(axis=1)], axis=1)
        return out.repeat(self.info.scale, axis=2).repeat(self.info.scale, axis=3)


def maps_of(kind, rng):
    if kind == "everywhere":
        return everywhere_measured(SHAPE)
    if kind == "lattice":
        return lattice_maps(lattice_mask(SHAPE, (3, 5), (2, 1)))
    mask = rng.random(SHAPE) < 0.1
    nearest, distance = nearest_map(mask)
    return PathMaps(nearest, distance, linear_map(mask, nearest) if kind == "scattered" else None)


def picture_of(maps, rng):
    """Return what two detector channels measured, once in the order of the maps and once on the grid."""
    visited = maps.nearest.visited
    hits = np.zeros(SHAPE, np.uint16)
    hits.ravel()[visited] = rng.integers(1, 4, len(visited))
    measured = rng.poisson(20, (2, len(visited))).astype(np.float32)
    values = np.zeros((2, *SHAPE), np.float32)
    values.reshape(2, -1)[:, visited] = measured
    return SimpleNamespace(measured=measured, hits=hits, values=values, maps=maps)


def completed_by_the_pipeline(engine, picture, monkeypatch):
    path = ScanPath(ScanGrid(SHAPE), np.argwhere(picture.hits), 1.0)
    start = ScanStart("scan", (path,), {"name": "points"}, ("HAADF", "BF"), 1.0, 25.0, 200.0, 0, None, 0, 0)
    sparse = SparseFrame(path.grid, picture.values, picture.hits, "scan", path.digest, 0, True, len(path), {})
    monkeypatch.setattr(MapCache, "get", lambda *_: picture.maps)
    reconstructor = Reconstructor([engine])
    frame = reconstructor.complete(sparse, start)
    reconstructor.close()
    assert frame.engine == engine.info.name
    return frame


KINDS = ["scattered", "scattered-without-linear", "lattice", "everywhere"]


@pytest.mark.parametrize("kind", ["scattered", "lattice", "everywhere"])
@pytest.mark.parametrize("channel", ["nearest", "linear", "cubic"])
def test_fill_on_the_device_is_that_on_the_host(xp, rng, kind, channel):
    infill = maps_of(kind, rng).infill(channel)
    measured = rng.random((3, len(infill.visited)), dtype=np.float32)
    on_device = fill_on_device(xp, infill).apply(xp.asarray(measured))
    np.testing.assert_allclose(assembly_gpu.on_host(xp, on_device), infill.apply(measured), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalisation", ["mean_std", "min_max"])
def test_stage_on_the_device_sees_and_gives_what_the_pipeline_does(xp, rng, kind, normalisation, monkeypatch):
    picture = picture_of(maps_of(kind, rng), rng)
    without = {"linear", "cubic"} if picture.maps.linear is None else set()
    channels = tuple(name for name in CHANNELS if name not in without)
    on_host, on_device = Mixing(normalisation, channels), MixingOnDevice(normalisation, channels, xp=xp)
    expected = completed_by_the_pipeline(on_host, picture, monkeypatch)
    assembly = AssemblyOnDevice(xp)
    for _ in range(2):  # the second time from what was kept
        image, deviation, engine_ns = assembly.complete(on_device, picture.measured, picture.hits, picture.maps, "ab")
        np.testing.assert_allclose(assembly_gpu.on_host(xp, on_device.seen), on_host.seen, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(image, expected.image, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(deviation, expected.uncertainty, rtol=1e-5, atol=1e-4)
        assert image.flags.c_contiguous
        assert image.dtype == deviation.dtype == np.float32
        assert engine_ns >= 0


def test_finer_output_comes_back_finer(rng):
    picture = picture_of(maps_of("lattice", rng), rng)
    image, _, _ = AssemblyOnDevice(np).complete(
        MixingOnDevice(scale=2), picture.measured, picture.hits, picture.maps, ""
    )
    assert image.shape == (2, 80, 112)


def test_maps_of_a_path_go_up_once_and_a_linear_one_when_it_is_there(rng, monkeypatch):
    uploaded = []
    monkeypatch.setattr(
        assembly_gpu, "fill_on_device", lambda xp, infill: (uploaded.append(infill), fill_on_device(xp, infill))[1]
    )
    maps = maps_of("scattered", rng)
    early = PathMaps(maps.nearest, maps.distance, None)
    picture, assembly, engine = picture_of(maps, rng), AssemblyOnDevice(np), MixingOnDevice(channels=("linear",))
    for each in (early, early, maps, maps):
        assembly.complete(engine, picture.measured, picture.hits, each, "ab")
    assert uploaded == [maps.nearest, maps.linear]
    assembly.complete(engine, picture.measured, picture.hits, early, "")
    assembly.complete(engine, picture.measured, picture.hits, early, "")
    assert len(uploaded) == 4


def test_maps_not_used_for_long_make_room(rng, monkeypatch):
    maps = maps_of("scattered", rng)
    picture, assembly, engine = picture_of(maps, rng), AssemblyOnDevice(np), MixingOnDevice(channels=("linear",))
    assembly.complete(engine, picture.measured, picture.hits, maps, "0")
    needed = sum(entry.nbytes for entry in assembly._kept.values())
    monkeypatch.setattr(assembly_gpu, "MAX_BYTES_KEPT", 3 * needed)
    for digest in ("1", "0", "2", "3"):
        assembly.complete(engine, picture.measured, picture.hits, maps, digest)
    assert {digest for digest, _ in assembly._kept} == {"0", "2", "3"}


@pytest.mark.parametrize(
    ("output", "error"),
    [(np.zeros((2, 2, 8, 8), np.float32), ValueError), (np.full((2, 2, *SHAPE), np.nan, np.float32), ArithmeticError)],
    ids=["shape", "nan"],
)
def test_output_that_is_no_picture_is_refused(rng, output, error):
    picture, engine = picture_of(maps_of("lattice", rng), rng), MixingOnDevice()
    engine.run_on_device = lambda inputs: output
    with pytest.raises(error, match="it returned"):
        AssemblyOnDevice(np).complete(engine, picture.measured, picture.hits, picture.maps, "")


def test_infill_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="no way to put a object on the GPU"):
        fill_on_device(np, object())


def test_only_engines_that_can_run_on_the_device():
    engine = MixingOnDevice()
    assert device_engine(engine, (64, 64)) is engine
    assert device_engine(LinearEngine(), (64, 64)) is None


def test_an_engine_in_tiles_is_asked_on_the_device_only_for_pictures_it_takes_as_they_are():
    engine = MixingOnDevice()
    engine.info = replace(engine.info, size_multiple=32)
    tiled = Tiled(engine, tile_px=128)
    assert device_engine(tiled, (64, 128)) is engine
    assert device_engine(tiled, (160, 64)) is None  # tiles
    assert device_engine(tiled, (50, 64)) is None  # padding
