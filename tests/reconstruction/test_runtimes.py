"""The contract of everything that runs an engine file, and how one of them is chosen."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import onnx
import pytest
from scipy.ndimage import uniform_filter

from lowdose.reconstruction.engine import PRECISIONS
from lowdose.reconstruction.engine_file import EngineFileError, digest_of, write_engine_file
from lowdose.reconstruction.engines import RUNTIMES, choice
from lowdose.reconstruction.engines.choice import load_engine, why_not
from lowdose.reconstruction.engines.openvino_engine import OpenVinoEngine, precisions
from lowdose.reconstruction.parity import MAX_DIFFERENCE, relative_rms
from tests.reconstruction.engine_files import write_smoothing


def smoothed(inputs):
    return np.stack([uniform_filter(picture[0], 3, mode="constant") for picture in inputs])


def pictures(rng, batch=3, rows=32, cols=48):
    return rng.standard_normal((batch, 2, rows, cols), dtype=np.float32)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_openvino_does_what_the_network_says_in_every_precision_of_the_processor(tmp_path, rng, precision):
    if precision not in precisions():
        pytest.skip(f"this processor does not compute in {precision}")
    engine = OpenVinoEngine(write_smoothing(tmp_path), precision=precision)
    inputs = pictures(rng)
    assert engine.info.precision == precision
    assert relative_rms(engine.run(inputs)[:, 0], smoothed(inputs)) <= MAX_DIFFERENCE[precision]


def test_a_batch_gives_what_its_pictures_give_one_by_one_and_again(tmp_path, rng):
    engine = OpenVinoEngine(write_smoothing(tmp_path))
    inputs = pictures(rng)
    output = engine.run(inputs)
    assert output.shape == (3, 2, 32, 48)
    assert output.dtype == np.float32
    np.testing.assert_array_equal(output, engine.run(inputs))
    np.testing.assert_array_equal(output, np.concatenate([engine.run(one[None]) for one in inputs]))


def test_a_network_without_deviation_gets_zeros_for_it(tmp_path, rng):
    output = OpenVinoEngine(write_smoothing(tmp_path, n_out=1)).run(pictures(rng))
    assert not output[:, 1].any()


def test_a_networks_own_deviation_is_handed_on(tmp_path, rng):
    file = write_smoothing(tmp_path, n_out=2, uncertainty_kind="calibrated")
    assert OpenVinoEngine(file).run(pictures(rng)).shape == (3, 2, 32, 48)


def test_the_caller_may_change_what_it_was_given(tmp_path, rng):
    engine, inputs = OpenVinoEngine(write_smoothing(tmp_path)), pictures(rng)
    first = engine.run(inputs)
    kept = first.copy()
    first[:] = 7
    np.testing.assert_array_equal(engine.run(inputs), kept)


def test_pictures_of_every_size_are_run(tmp_path, rng):
    engine = OpenVinoEngine(write_smoothing(tmp_path), precision="FP32")
    for rows, cols in ((32, 32), (33, 17), (64, 32), (5, 40), (32, 32)):
        inputs = pictures(rng, 1, rows, cols)
        np.testing.assert_allclose(engine.run(inputs)[:, 0], smoothed(inputs), atol=1e-5)


def test_a_precision_the_processor_lacks_is_refused_with_those_it_has(tmp_path):
    lacking = [name for name in PRECISIONS if name not in precisions()]
    with pytest.raises(ValueError, match=f"computes in FP32.*got precision {lacking[0]}"):
        OpenVinoEngine(write_smoothing(tmp_path), precision=lacking[0])


def test_a_network_openvino_cannot_read_is_refused_by_name(tmp_path):
    file = write_smoothing(tmp_path)
    network = onnx.load_model_from_string(file.path.read_bytes())
    network.graph.node[0].op_type = "NoSuchOperator"
    onnx_bytes = network.SerializeToString()
    card = replace(file.card, info=replace(file.info, digest=digest_of(onnx_bytes)))
    with pytest.raises(EngineFileError, match=r"openvino cannot read .*smoothing\.onnx"):
        OpenVinoEngine(write_engine_file(file.path, onnx_bytes, card))


def test_a_network_that_was_exchanged_after_it_was_checked_is_not_run(tmp_path):
    file = write_smoothing(tmp_path)
    write_smoothing(tmp_path, channels=("nearest", "mask", "distance"))
    with pytest.raises(EngineFileError, match="has changed since it was checked"):
        OpenVinoEngine(file)


# --- the choice -----------------------------------------------------------------------------------------------------


def test_auto_takes_the_first_that_runs_here_and_says_what_keeps_the_faster_ones(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(choice.shutil, "which", lambda _: None)
    with caplog.at_level(logging.INFO):
        engine = load_engine(write_smoothing(tmp_path))
    assert isinstance(engine, OpenVinoEngine)
    assert "smoothing.onnx runs on openvino: tensorrt: no NVIDIA GPU here" in caplog.text


def test_a_runtime_that_fails_to_start_is_passed_over(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(choice, "why_not", lambda name: None if name in ("torch_cuda_graph", "openvino") else "no")
    with caplog.at_level(logging.INFO):
        engine = load_engine(write_smoothing(tmp_path))
    assert isinstance(engine, OpenVinoEngine)


def test_a_runtime_asked_for_that_cannot_run_is_refused_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(choice, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r'torch not installed: pip install "lowdose\[train\]"'):
        load_engine(write_smoothing(tmp_path), runtime="torch")


def test_with_nothing_to_run_it_every_reason_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(choice, "why_not", lambda name: f"{name} is away")
    with pytest.raises(ValueError, match=r"tensorrt is away.*openvino is away.*torch is away"):
        load_engine(write_smoothing(tmp_path))


def test_every_runtime_has_its_needs_named():
    assert set(choice.NEEDS) == set(RUNTIMES)


def test_without_a_gpu_nothing_that_needs_one_is_offered(monkeypatch):
    monkeypatch.setattr(choice.shutil, "which", lambda _: None)
    assert {name for name in RUNTIMES if why_not(name) == "no NVIDIA GPU here"} == {"tensorrt", "torch_cuda_graph"}
