from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from scipy.ndimage import uniform_filter

from lowdose.reconstruction.engine_file import Card, EngineFileError, ModelSpec, digest_of, write_engine_file
from lowdose.reconstruction.engines import torch_engine
from lowdose.reconstruction.engines.torch_engine import CompiledTorchEngine, CudaGraphTorchEngine, TorchEngine
from tests.reconstruction.engine_files import OPSET, conv_onnx, info_of, mean_of_3x3

torch = pytest.importorskip("torch", reason='torch is not installed: pip install "lowdose[train]"')


class Smoothing(torch.nn.Module):
    """The network of `conv_onnx`."""

    def __init__(self, n_in=2, n_out=1, width=3):
        super().__init__()
        self.layer = torch.nn.Conv2d(n_in, n_out, width, padding=width // 2, bias=False)

    def forward(self, inputs):
        return self.layer(inputs)


class Unfolded(torch.nn.Module):
    """A network that is exported as another."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def folded(self):
        return Smoothing()


@pytest.fixture(autouse=True)
def known_networks(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setitem(torch_engine.MODELS, "smoothing", f"{__name__}:Smoothing")
    monkeypatch.setitem(torch_engine.MODELS, "unfolded", f"{__name__}:Unfolded")
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write(folder, model=ModelSpec("smoothing"), *, n_out=1, change=None, **facts):  # noqa: B008 frozen
    """Write an engine file that smooths its first channel, with a card that names its network."""
    network = onnx.load_model_from_string(conv_onnx(mean_of_3x3(n_out)))
    if change is not None:
        change(network.graph)
    onnx_bytes = network.SerializeToString()
    card = Card(info_of(digest=digest_of(onnx_bytes), **facts), OPSET, n_out, 0.005, model)
    return write_engine_file(folder / "smoothing.onnx", onnx_bytes, card)


def smoothed(inputs):
    return np.stack([uniform_filter(picture[0], 3, mode="constant") for picture in inputs])


# --- eager ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "tolerance"), [("FP32", 1e-6), ("BF16", 2e-2)])
def test_network_is_run_with_the_weights_of_the_file_in_the_precision_asked_for(tmp_path, rng, precision, tolerance):
    engine = TorchEngine(write(tmp_path), precision=precision)
    assert engine.info.precision == precision
    inputs = rng.random((3, 2, 32, 48), dtype=np.float32)
    output = engine.run(inputs)
    assert output.dtype == np.float32
    np.testing.assert_allclose(output[:, 0], smoothed(inputs), atol=tolerance)
    np.testing.assert_array_equal(output[:, 1], 0)
    np.testing.assert_array_equal(output, engine.run(inputs))
    np.testing.assert_array_equal(output, np.concatenate([engine.run(one[None]) for one in inputs]))
    output[:] = 0  # a fresh array, the caller's own
    assert engine.run(inputs).any()


def test_second_output_is_the_uncertainty(tmp_path, rng):
    model = ModelSpec("smoothing", {"n_out": 2})
    engine = TorchEngine(write(tmp_path, model, n_out=2, uncertainty_kind="calibrated"))
    assert engine.info.uncertainty_kind == "calibrated"
    assert engine.run(rng.random((1, 2, 16, 16), dtype=np.float32)).shape == (1, 2, 16, 16)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_of_lower_precision_are_taken(tmp_path, rng, dtype):
    def lowered(graph):
        weight = torch.from_numpy(numpy_helper.to_array(graph.initializer[0]).copy()).to(getattr(torch, dtype))
        kind = {"float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16}[dtype]
        raw = weight.view(torch.int16).numpy().tobytes()
        graph.initializer[0].CopyFrom(
            onnx.TensorProto(name="layer.weight", data_type=kind, dims=weight.shape, raw_data=raw)
        )

    engine = TorchEngine(write(tmp_path, change=lowered, precision={"float16": "FP16", "bfloat16": "BF16"}[dtype]))
    assert engine.info.precision == "FP32"
    inputs = rng.random((1, 2, 16, 16), dtype=np.float32)
    np.testing.assert_allclose(engine.run(inputs)[:, 0], smoothed(inputs), rtol=1e-2)


def test_fp16_is_refused_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="FP32 or BF16 here, got precision FP16"):
        TorchEngine(write(tmp_path), precision="FP16")


def test_network_that_is_folded_for_export_is_folded_to_be_run(tmp_path, rng):
    inputs = rng.random((1, 2, 16, 16), dtype=np.float32)
    output = TorchEngine(write(tmp_path, ModelSpec("unfolded"))).run(inputs)
    np.testing.assert_allclose(output[:, 0], smoothed(inputs), atol=1e-6)


def test_threads_are_set(tmp_path):
    TorchEngine(write(tmp_path), threads=2)
    assert torch.get_num_threads() == 2


# --- files that are refused -----------------------------------------------------------------------------------------


def renamed(graph):
    graph.initializer[0].name = "first.weight"
    graph.node[0].input[1] = "first.weight"


def with_more(graph):
    weights = [numpy_helper.from_array(np.zeros(2, np.float32), f"more.{k}") for k in range(5)]
    constant = numpy_helper.from_array(np.zeros((), np.float32), "val_3")
    graph.initializer.extend([*weights, constant])


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        (None, None, "names no network, torch needs one: use runtime openvino"),
        (ModelSpec("smoothng"), None, "unknown network 'smoothng': did you mean 'smoothing'"),
        (ModelSpec("os:system"), None, "unknown network 'os:system'"),
        (ModelSpec("smoothing", {"depth": 3}), None, r"cannot be built with \{'depth': 3\}"),
        (ModelSpec("smoothing", {"width": 5}), None, r"layer.weight \(1, 2, 3, 3\) for \(1, 2, 5, 5\)"),
        (ModelSpec("smoothing", {"n_in": 1 << 40}), None, "has other shapes of layer.weight"),
        (
            ModelSpec("smoothing"),
            renamed,
            "lacks layer.weight, has the unexpected first.weight; expected its 1 weights",
        ),
        (ModelSpec("smoothing"), with_more, "has the unexpected more.0, more.1, more.2 and 2 more;"),
    ],
    ids=["none", "misspelt", "not-in-the-table", "option", "shape", "huge", "renamed", "more"],
)
def test_file_that_is_not_the_network_its_card_names_is_refused(tmp_path, model, change, message):
    with pytest.raises(EngineFileError, match=message):
        TorchEngine(write(tmp_path, model, change=change))


def test_file_that_changed_since_it_was_checked_is_refused(tmp_path):
    file = write(tmp_path)
    file.path.write_bytes(b"something else")
    with pytest.raises(EngineFileError, match="has changed since it was checked"):
        TorchEngine(file)


def test_missing_torch_is_told_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r'pip install "lowdose\[train\]"'):
        TorchEngine(write(tmp_path))


# --- compiled and recorded ------------------------------------------------------------------------------------------


def test_missing_compiler_is_told_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="needs a C\\+\\+ compiler on a CPU, found no 'no-such-compiler': install g"):
        CompiledTorchEngine(write(tmp_path))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler uses torch.jit
def test_compiled_network_does_as_the_eager_one_for_every_size(tmp_path, rng):
    file = write(tmp_path)
    try:
        compiled = CompiledTorchEngine(file)
    except ValueError as why:
        pytest.skip(str(why))
    for shape in ((2, 2, 16, 24), (1, 2, 32, 24), (2, 2, 16, 24)):
        inputs = rng.random(shape, dtype=np.float32)
        output = compiled.run(inputs)
        np.testing.assert_allclose(output, TorchEngine(file).run(inputs), atol=1e-6)
        np.testing.assert_array_equal(output, compiled.run(inputs))


def test_cuda_graph_is_refused_without_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="needs an NVIDIA GPU that torch can use, found none: use runtime torch"):
        CudaGraphTorchEngine(write(tmp_path))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no NVIDIA GPU")
@pytest.mark.parametrize("engine_class", [TorchEngine, CudaGraphTorchEngine])
def test_network_on_a_gpu_does_as_it_should(tmp_path, rng, engine_class):
    engine = engine_class(write(tmp_path))
    for shape in ((2, 2, 64, 96), (1, 2, 64, 64), (2, 2, 64, 96)):
        inputs = rng.random(shape, dtype=np.float32)
        output = engine.run(inputs)
        np.testing.assert_allclose(output[:, 0], smoothed(inputs), atol=1e-5)
        np.testing.assert_array_equal(output, engine.run(inputs))
