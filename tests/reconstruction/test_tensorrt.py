"""What is asked of TensorRT and CuPy, with stand-ins for both; the real ones in tests marked `gpu`."""

from __future__ import annotations

import enum
import importlib.machinery
import logging
import os
import stat
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from scipy.ndimage import uniform_filter

from lowdose.reconstruction.engine_file import Card, EngineFileError
from lowdose.reconstruction.engines import tensorrt_engine, tensorrt_plan
from lowdose.reconstruction.engines.tensorrt_engine import TensorRTEngine
from lowdose.reconstruction.engines.tensorrt_plan import (
    PlanError,
    PlanKey,
    UnusableCache,
    cache_folder,
    profile_for,
    read_cached,
    write_cached,
)
from tests.reconstruction.engine_files import info_of, write_smoothing

KEY = {"digest": "ab12", "tensorrt": "10.13.0", "gpu": "Tesla X", "capability": "9.0"}


# --- stand-ins ------------------------------------------------------------------------------------------------------


class DeviceArray(np.ndarray):
    """An array with an address, as CuPy's have."""

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)

    def get(self, *, out):
        out[...] = self


class Stream:
    """Runs what it is given at once, or records it."""

    ptr = 7
    recorded = None
    entered: list = []  # noqa: RUF012

    def __init__(self, *, non_blocking):
        assert non_blocking

    def __enter__(self):
        self.entered.append(self)

    def __exit__(self, *_):
        self.entered.pop()

    def record(self):
        return "event"

    def wait_event(self, event):
        assert event == "event"

    def synchronize(self):
        pass

    def begin_capture(self):
        assert self.entered == [self]
        Stream.recorded = []

    def end_capture(self):
        work, Stream.recorded = Stream.recorded, None
        return SimpleNamespace(launch=lambda _: [do() for do in work])


class Cupy(ModuleType):
    """CuPy as far as it is used, in the host's memory."""

    float32 = np.float32

    def __init__(self):
        super().__init__("cupy")
        self.__spec__ = importlib.machinery.ModuleSpec("cupy", None)
        self.arrays = {}
        runtime = SimpleNamespace(
            getDeviceCount=lambda: 1,
            getDevice=lambda: 0,
            getDeviceProperties=lambda _: {"name": b"Tesla X", "major": 9, "minor": 0},
            memGetInfo=lambda: (8 << 30, 16 << 30),
        )
        default = Stream(non_blocking=True)
        self.cuda = SimpleNamespace(
            Stream=Stream, runtime=runtime, alloc_pinned_memory=bytearray, get_current_stream=lambda: default
        )

    def asarray(self, array):
        made = np.array(array).view(DeviceArray)
        self.arrays[made.ctypes.data] = made
        return made

    def zeros(self, shape, dtype):
        return self.asarray(np.zeros(shape, dtype))

    empty = zeros


class Severity(enum.IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class TensorRT(ModuleType):
    """TensorRT as far as it is used: its plans are `plan`, its networks double their first channel."""

    __version__ = "10.13.0"
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    BuilderFlag = SimpleNamespace(TF32="tf32")
    ILogger = type("ILogger", (), {"Severity": Severity, **Severity.__members__})
    IProgressMonitor = type("IProgressMonitor", (), {})

    def __init__(self, cupy):
        super().__init__("tensorrt")
        self.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
        self.cupy = cupy
        self.built, self.refuses, self.parses, self.contexts = [], "", True, 0

    def Dims4(self, *numbers):
        return numbers

    def Builder(self, log):
        def build(network, config):
            self.built.append(network)
            config.progress_monitor.phase_start("timing", None, 4)
            assert config.progress_monitor.step_complete("timing", 0)
            config.progress_monitor.phase_finish("timing")
            if self.refuses:
                log.log(Severity.ERROR, self.refuses)
                return None
            return b"plan"

        return SimpleNamespace(
            create_network=lambda flags: SimpleNamespace(flags=flags, options={}),
            create_builder_config=lambda: self._config(),
            create_optimization_profile=lambda: SimpleNamespace(set_shape=lambda *shapes: None),
            build_serialized_network=build,
        )

    def _config(self):
        serialised = SimpleNamespace(serialize=lambda: b"timings")
        return SimpleNamespace(
            set_memory_pool_limit=lambda pool, size: None,
            clear_flag=lambda flag: None,
            add_optimization_profile=lambda shapes: 0,
            create_timing_cache=lambda kept: serialised,
            set_timing_cache=lambda cache, ignore_mismatch: True,
            get_timing_cache=lambda: serialised,
        )

    def OnnxParser(self, network, log):
        return SimpleNamespace(
            parse=lambda onnx_bytes: self.parses, num_errors=1, get_error=lambda i: "no such operator"
        )

    def Runtime(self, log):
        def deserialize(plan):
            if plan != b"plan":
                log.log(Severity.ERROR, "magic tag does not match")
                return None
            return SimpleNamespace(create_execution_context=self._context)

        return SimpleNamespace(deserialize_cuda_engine=deserialize)

    def _context(self):
        self.contexts += 1
        state = {}

        def run():
            inputs, outputs = (self.cupy.arrays[state[name]] for name in ("inputs", "outputs"))
            outputs[:, :1] = 2 * inputs[:, :1]

        def execute(stream):
            assert stream == Stream.ptr
            if Stream.recorded is None:
                run()
            else:
                Stream.recorded.append(run)
            return True

        return SimpleNamespace(
            set_input_shape=lambda name, shape: state.update(shape=shape) is None,
            get_tensor_shape=lambda name: (1, 1, *state["shape"][2:]),
            set_tensor_address=lambda name, address: state.update({name: address}) is None,
            execute_async_v3=execute,
        )


@pytest.fixture
def trt(monkeypatch, tmp_path):
    cupy = Cupy()
    tensorrt = TensorRT(cupy)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt)
    monkeypatch.setattr(tensorrt_plan, "cache_folder", lambda: tmp_path / "cache")
    for cached in (tensorrt_plan._log, tensorrt_plan._runtime):
        cached.cache_clear()
    yield tensorrt
    for cached in (tensorrt_plan._log, tensorrt_plan._runtime):
        cached.cache_clear()


@pytest.fixture
def file(tmp_path):
    return write_smoothing(tmp_path)


# --- profile, names, cache ------------------------------------------------------------------------------------------


def card_of(**changes):
    return Card(info_of(**changes), opset=20, outputs=1, gmac_512=1)


def test_profile_has_edges_the_network_takes():
    profile = profile_for(card_of(size_multiple=96))
    assert str(profile) == "1x2x96x96-1x2x576x576-1x2x1056x1056"
    assert str(profile_for(card_of())) == "1x2x64x64-1x2x512x512-1x2x1024x1024"


def test_profile_covers_what_lies_between_its_smallest_and_its_largest():
    profile = profile_for(card_of())
    assert profile.covers((1, 2, 64, 1024))
    assert not profile.covers((1, 2, 64, 1025))
    assert not profile.covers((1, 2, 63, 512))
    assert not profile.covers((2, 2, 512, 512))


def test_plan_is_named_by_everything_it_depends_on():
    key = PlanKey("ab12", "10.13.0.35", "NVIDIA RTX 6000 Ada/../x", "8.9", "1x1x64x64")
    assert key.file_name == "ab12_trt10.13.0.35_NVIDIA-RTX-6000-Ada-..-x_sm8.9_1x1x64x64.plan"


def test_plans_lie_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder().name == "tensorrt"
    assert "lowdose" in str(cache_folder())


def test_what_is_cached_comes_back_and_only_its_owner_may_write_beside_it(tmp_path):
    path = tmp_path / "cache" / "a.plan"
    write_cached(path, KEY, b"\n\x00plan\n")
    assert read_cached(path, KEY) == b"\n\x00plan\n"
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [each.name for each in path.parent.iterdir()] == ["a.plan"]


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_cached(tmp_path / "cache" / "a.plan", KEY, b"plan")
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.unlink(), "there is none yet"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "damaged"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: path.write_bytes(b"lowdose cache 1\n[1]\nplan"), "damaged"),
        (lambda path: path.write_bytes(b"\x89PNG" * 9000), "damaged"),
        (lambda path: write_cached(path, {**KEY, "tensorrt": "10.12.0"}, b"plan"), "tensorrt 10.12.0, this is 10.13.0"),
        (lambda path: write_cached(path, {**KEY, "gpu": "Tesla Y"}, b"plan"), "gpu Tesla Y, this is Tesla X"),
    ],
    ids=["absent", "cut", "empty", "wrong-header", "foreign", "other-version", "other-gpu"],
)
def test_cached_file_of_no_use_says_why(tmp_path, spoil, reason):
    path = tmp_path / "a.plan"
    write_cached(path, KEY, b"plan")
    spoil(path)
    with pytest.raises(UnusableCache, match=reason):
        read_cached(path, KEY)


# --- building -------------------------------------------------------------------------------------------------------


def test_plan_is_built_once_strongly_typed_and_read_the_next_time(trt, file):
    TensorRTEngine(file)
    TensorRTEngine(file)
    assert [network.flags for network in trt.built] == [2]
    names = sorted(path.name for path in cache_folder_of(file).iterdir())
    assert names == [
        f"{file.info.digest}_trt10.13.0_Tesla-X_sm9.0_1x2x64x64-1x2x512x512-1x2x1024x1024.plan",
        "timings_trt10.13.0_Tesla-X_sm9.0",
    ]


def cache_folder_of(file):
    return file.path.parent / "cache"


def test_plan_that_tensorrt_does_not_accept_is_built_again_saying_why(trt, file, caplog):
    TensorRTEngine(file)
    (path,) = cache_folder_of(file).glob("*.plan")
    key = PlanKey(file.info.digest, "10.13.0", "Tesla X", "9.0", str(profile_for(file.card)))
    write_cached(path, {name: getattr(key, name) for name in key.__slots__}, b"of another build")
    with caplog.at_level(logging.INFO):
        TensorRTEngine(file)
    assert len(trt.built) == 2
    assert "does not accept it: magic tag does not match" in caplog.text


def test_another_version_of_tensorrt_builds_its_own_plan(trt, file):
    TensorRTEngine(file)
    trt.__version__ = "11.0.0"
    TensorRTEngine(file)
    assert len(trt.built) == 2
    assert len(list(cache_folder_of(file).glob("*.plan"))) == 2


def test_too_little_memory_is_told_with_what_to_do(trt, file):
    trt.refuses = "[virtualMemoryBuffer.cpp::resizePhysical] Error Code 2: OutOfMemory (no further information)"
    with pytest.raises(PlanError, match=r"too little memory .*4096 MiB.* end other programs .* OutOfMemory"):
        TensorRTEngine(file)
    assert not list(cache_folder_of(file).glob("*.plan"))


def test_operator_that_tensorrt_does_not_know_is_told(trt, file):
    trt.parses = False
    with pytest.raises(PlanError, match=r"cannot read smoothing\.onnx: no such operator; use runtime openvino"):
        TensorRTEngine(file)


def test_ctrl_c_in_a_build_ends_it(trt, file, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("rich.progress.Progress.remove_task", interrupt)
    with pytest.raises(KeyboardInterrupt):
        TensorRTEngine(file)


def test_cache_that_cannot_be_written_does_not_stop_the_engine(trt, file, caplog):
    cache_folder_of(file).write_text("in the way")
    TensorRTEngine(file)
    assert "cannot keep" in caplog.text


def test_file_that_changed_since_it_was_checked_is_refused(trt, file):
    file.path.write_bytes(b"something else")
    with pytest.raises(EngineFileError, match="has changed since it was checked"):
        TensorRTEngine(file)


# --- running --------------------------------------------------------------------------------------------------------


def test_batch_is_run_picture_by_picture_by_one_recording_a_size(trt, file, rng):
    engine = TensorRTEngine(file)
    inputs = rng.random((3, 2, 64, 96), dtype=np.float32)
    output = engine.run(inputs)
    np.testing.assert_array_equal(output[:, 0], 2 * inputs[:, 0])
    np.testing.assert_array_equal(output[:, 1], 0)
    first = output.copy()
    engine.run(inputs + 1)
    np.testing.assert_array_equal(output, first)
    assert trt.contexts == 1


def test_sizes_not_used_for_long_are_forgotten(trt, file):
    engine = TensorRTEngine(file)
    for rows in (64, 96, 128, 160, 64):
        assert engine.run(np.ones((1, 2, rows, 64), np.float32)).shape == (1, 2, rows, 64)
    assert trt.contexts == 5
    assert len(engine._recordings) == 3


def test_picture_outside_the_plan_is_refused(trt, file):
    engine = TensorRTEngine(file)
    with pytest.raises(ValueError, match=r"got \(1, 2, 2048, 64\): cut the picture into tiles"):
        engine.run(np.ones((1, 2, 2048, 64), np.float32))


def test_precision_is_that_of_the_file(trt, file):
    assert TensorRTEngine(file, precision="FP32").info.precision == "FP32"
    with pytest.raises(ValueError, match=r"exported in FP32 .* got precision FP16: leave it out"):
        TensorRTEngine(file, precision="FP16")


def test_missing_libraries_are_named_with_the_remedy(file, monkeypatch):
    monkeypatch.setattr(tensorrt_engine, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'tensorrt and cupy not installed: pip install "lowdose\[gpu\]"'):
        TensorRTEngine(file)


def test_missing_driver_is_told(trt, file):
    def no_driver():
        raise RuntimeError("cudaErrorInsufficientDriver")

    trt.cupy.cuda.runtime.getDeviceCount = no_driver
    with pytest.raises(ValueError, match=r"no NVIDIA GPU .*cudaErrorInsufficientDriver.* install its driver"):
        TensorRTEngine(file)


# --- the real ones --------------------------------------------------------------------------------------------------


@pytest.fixture
def on_gpu(monkeypatch, tmp_path):
    try:
        tensorrt_engine._usable_cupy()
    except ValueError as why:
        pytest.skip(str(why))
    monkeypatch.setattr(tensorrt_plan, "cache_folder", lambda: tmp_path / "cache")


@pytest.mark.gpu
def test_smoothing_on_a_gpu_is_smoothing_and_the_kept_plan_does_the_same(on_gpu, file, rng):
    inputs = rng.random((2, 2, 128, 192), dtype=np.float32)
    expected = np.stack([uniform_filter(picture[0], 3, mode="constant") for picture in inputs])
    built, kept = TensorRTEngine(file), TensorRTEngine(file)
    for engine in (built, kept):
        output = engine.run(inputs)
        np.testing.assert_allclose(output[:, 0], expected, atol=1e-5)
        np.testing.assert_array_equal(output, engine.run(inputs))
        np.testing.assert_array_equal(output, np.concatenate([engine.run(one[None]) for one in inputs]))
        assert engine.run(inputs[:, :, :64, :64]).shape == (2, 2, 64, 64)
