"""The contract of every runtime that is installed, on an engine file that all of them can run."""

from __future__ import annotations

import numpy as np
import pytest

from lowdose.reconstruction.engine import EngineInfo
from lowdose.reconstruction.engine_file import Card, ModelSpec, read_engine_file
from lowdose.reconstruction.engines import RUNTIMES
from lowdose.reconstruction.engines.choice import load_engine, precisions, why_not
from lowdose.reconstruction.parity import MAX_DIFFERENCE, relative_rms

torch = pytest.importorskip("torch")

CHANNELS = ("linear", "cubic", "sparse", "mask", "distance")


@pytest.fixture(scope="module")
def network():
    from lowdose.reconstruction.models.compact import CompactGenerator

    torch.manual_seed(0)
    network = CompactGenerator((8, 8), (1, 1)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    return network


@pytest.fixture(scope="module")
def file(network, tmp_path_factory):
    from lowdose.training.export import export_engine

    info = EngineInfo(
        name="tiny",
        version="1",
        digest="",
        precision="FP16",
        task="complete",
        scale=1,
        channels=CHANNELS,
        normalisation="mean_std",
        target="blurred_5x5",
        size_multiple=network.size_multiple,
        halo_px=8,
        keeps_measured=False,
        uncertainty_kind="calibrated",
    )
    card = Card(info, opset=0, outputs=2, gmac_512=0.0, model=ModelSpec("compact", network.options))
    path = tmp_path_factory.mktemp("engine") / "tiny.onnx"
    export_engine(network, path, card)
    return read_engine_file(path)


def slow_to_compile(runtime):
    marks = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")]  # torch's own
    return pytest.param(runtime, marks=marks) if runtime == "torch_compiled" else runtime


@pytest.fixture(params=map(slow_to_compile, RUNTIMES))
def runtime(request):
    if (reason := why_not(request.param)) is not None:
        pytest.skip(f"{request.param}: {reason}")
    return request.param


def inputs(batch=2, rows=32, cols=64):
    return np.random.default_rng(0).standard_normal((batch, len(CHANNELS), rows, cols), dtype=np.float32)


def test_it_computes_what_the_network_computes_in_every_precision(runtime, network, file):
    pictures = inputs()
    with torch.inference_mode():
        expected = network(torch.from_numpy(pictures)).numpy()
    for precision in precisions(runtime, file):
        engine = load_engine(file, runtime=runtime, precision=precision)
        assert engine.info.precision == precision
        bound = max(MAX_DIFFERENCE[precision], MAX_DIFFERENCE["FP16"])  # the file's weights are FP16
        for k in range(2):
            assert relative_rms(engine.run(pictures)[:, k], expected[:, k]) <= bound


def test_outputs_are_fresh_the_same_every_time_and_do_not_depend_on_the_batch(runtime, file):
    engine, pictures = load_engine(file, runtime=runtime), inputs(3)
    first = engine.run(pictures)
    assert first.shape == (3, 2, 32, 64)
    assert first.dtype == np.float32
    again, one_by_one = engine.run(pictures), np.concatenate([engine.run(each[None]) for each in pictures])
    kept = first.copy()
    first[:] = 7
    np.testing.assert_array_equal(again, kept)
    np.testing.assert_array_equal(one_by_one, kept)


def test_pictures_run_side_by_side_are_those_run_alone(file):
    pictures = inputs(5)
    alone = load_engine(file, runtime="openvino").run(pictures)
    np.testing.assert_array_equal(load_engine(file, runtime="openvino", streams=2, threads=2).run(pictures), alone)
