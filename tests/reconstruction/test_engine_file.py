from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from lowdose.reconstruction.engine_file import (
    EngineFileError,
    ModelSpec,
    bytes_of,
    card_path,
    digest_of,
    read_engine_file,
    write_engine_file,
)
from tests.reconstruction.engine_files import OPSET, conv_onnx, mean_of_3x3, write_smoothing


@pytest.fixture
def file(tmp_path):
    return write_smoothing(tmp_path)


def change_card(file, **changes):
    path = card_path(file.path)
    card = json.loads(path.read_text())
    path.write_text(json.dumps({**card, **changes}))


def replace_network(file, onnx_bytes, **changes):
    """Put another network under the card, with the digest to match."""
    file.path.write_bytes(onnx_bytes)
    change_card(file, info={**json.loads(card_path(file.path).read_text())["info"], "digest": digest_of(onnx_bytes)})
    change_card(file, **changes)


def test_what_was_written_is_read_back(tmp_path):
    written = write_smoothing(tmp_path)
    card = replace(
        written.card,
        model=ModelSpec("two_stage", {"width": 0.5, "plain": True}),
        patterns=("spiral",),
        coverages=(0.05,),
        sizes=(128,),
        provenance={"recipe": "live_default", "steps": 10},
        errors=({"rms": 0.02, "engine": "linear"},),
        training_data=({"source": "simulator", "licence": "BSD-3-Clause"},),
    )
    again = write_engine_file(tmp_path / "b.onnx", written.path.read_bytes(), card)
    assert read_engine_file(again.path).card == card


def test_no_half_file_is_left_beside_what_was_written(file):
    assert sorted(path.name for path in file.path.parent.iterdir()) == ["smoothing.json", "smoothing.onnx"]


def test_a_missing_file_or_card_is_named_and_what_an_engine_file_is(tmp_path, file):
    with pytest.raises(EngineFileError, match=r"nothing\.json.*NAME\.onnx with its card"):
        read_engine_file(tmp_path / "nothing.onnx")
    file.path.unlink()
    with pytest.raises(EngineFileError, match=r"smoothing\.onnx"):
        read_engine_file(file.path)


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:40] + bytes([b[40] ^ 1]) + b[41:], lambda b: b""])
def test_a_truncated_or_tampered_network_is_refused_naming_both_digests(file, damage):
    damaged = damage(file.path.read_bytes())
    file.path.write_bytes(damaged)
    with pytest.raises(EngineFileError, match=f"{digest_of(damaged)}.*{file.info.digest}"):
        read_engine_file(file.path)


def test_what_is_no_onnx_is_refused_even_with_its_digest(file):
    replace_network(file, b"\xff not a network")
    with pytest.raises(EngineFileError, match="no ONNX file"):
        read_engine_file(file.path)


def test_another_opset_than_the_cards_is_refused_naming_both(file):
    replace_network(file, conv_onnx(mean_of_3x3(), opset=18))
    with pytest.raises(EngineFileError, match=f"opset 18.*says {OPSET}"):
        read_engine_file(file.path)


def test_an_opset_no_runtime_reads_is_refused(file):
    replace_network(file, conv_onnx(mean_of_3x3(), opset=11), opset=11)
    with pytest.raises(EngineFileError, match=r"opset 11.*expected one from 17"):
        read_engine_file(file.path)


def test_another_number_of_channels_than_the_cards_is_refused(file):
    replace_network(file, conv_onnx(mean_of_3x3(n_in=3)))
    with pytest.raises(EngineFileError, match=r"inputs of shape.*3.*card says 2 channels"):
        read_engine_file(file.path)
    replace_network(file, conv_onnx(mean_of_3x3(n_out=2)))
    with pytest.raises(EngineFileError, match=r"outputs of shape.*2.*card says 1 channels"):
        read_engine_file(file.path)


def test_other_names_of_input_or_output_are_refused(file):
    replace_network(file, conv_onnx(mean_of_3x3(), inputs="x"))
    with pytest.raises(EngineFileError, match="inputs x: expected one called 'inputs'"):
        read_engine_file(file.path)


def test_weights_in_further_files_are_refused_and_not_looked_for(file):
    model = onnx.load_model_from_string(file.path.read_bytes())
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], location="../secret")
    replace_network(file, model.SerializeToString())
    with pytest.raises(EngineFileError, match="weights in other files"):
        read_engine_file(file.path)


@pytest.mark.parametrize("place", ["constant", "function"])
def test_so_are_constants_in_further_files_wherever_they_are(file, place):
    model = onnx.load_model_from_string(file.path.read_bytes())
    tensor = numpy_helper.from_array(np.ones(3, np.float32))
    onnx.external_data_helper.set_external_data(tensor, location="weights.bin")
    constant = onnx.helper.make_node("Constant", [], ["far"], value=tensor)
    if place == "constant":
        model.graph.node.append(constant)
    else:
        opset = onnx.helper.make_opsetid("", model.opset_import[0].version)
        model.functions.append(onnx.helper.make_function("own", "f", [], ["far"], [constant], [opset]))
    replace_network(file, model.SerializeToString())
    with pytest.raises(EngineFileError, match="weights in other files"):
        read_engine_file(file.path)


def test_what_was_checked_is_handed_to_runtimes_and_nothing_else(file):
    assert digest_of(bytes_of(file)) == file.info.digest
    file.path.write_bytes(b"changed after it was checked")
    with pytest.raises(EngineFileError, match="has changed since it was checked"):
        bytes_of(file)


def test_a_calibrated_uncertainty_of_a_network_without_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="uncertainty_kind must be none where outputs is 1, got calibrated"):
        write_smoothing(tmp_path, uncertainty_kind="calibrated")


def test_a_card_of_another_version_is_refused(file):
    change_card(file, card_version=2)
    with pytest.raises(EngineFileError, match="version 2, expected 1"):
        read_engine_file(file.path)


def test_an_unknown_key_of_a_card_gets_the_nearest_name(file):
    change_card(file, coverage=[0.05])
    with pytest.raises(EngineFileError, match="did you mean 'coverages'"):
        read_engine_file(file.path)


@pytest.mark.parametrize("text", ["", "[]", '{"opset": 20}', "\x00"])
def test_what_is_no_card_is_refused(file, text):
    card_path(file.path).write_text(text)
    with pytest.raises(EngineFileError, match="is no engine card"):
        read_engine_file(file.path)


def test_nothing_is_written_of_a_network_and_a_card_that_do_not_belong_together(tmp_path, file):
    card = replace(file.card, outputs=2)
    with pytest.raises(EngineFileError, match="outputs"):
        write_engine_file(tmp_path / "new.onnx", file.path.read_bytes(), card)
    with pytest.raises(EngineFileError, match="digest"):
        write_engine_file(tmp_path / "new.onnx", conv_onnx(np.ones((1, 2, 3, 3))), file.card)
    assert not list(tmp_path.glob("new*"))


def test_a_file_too_large_is_refused_before_it_is_read(tmp_path, file, monkeypatch):
    monkeypatch.setattr("lowdose.reconstruction.engine_file.MAX_BYTES", 10)
    with pytest.raises(EngineFileError, match="expected at most 10"):
        read_engine_file(file.path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scale": 3}, "scale must be 1, 2 or 4, got 3"),
        ({"size_multiple": 0}, "size_multiple must be 1 to 2048 px, got 0"),
        ({"size_multiple": 10**9}, "size_multiple must be 1 to 2048 px"),
        ({"halo_px": -1}, "halo_px must be 0 to 2048 px, got -1"),
        ({"precision": "FP8"}, "precision must be FP32, BF16, FP16, got 'FP8'"),
        ({"name": "a\nb\x1b[31m"}, "printable characters"),
        ({"channels": []}, "channels must be some of"),
    ],
)
def test_a_card_with_odd_values_is_refused(file, change, said):
    info = json.loads(card_path(file.path).read_text())["info"]
    change_card(file, info={**info, **change})
    with pytest.raises(EngineFileError, match=said):
        read_engine_file(file.path)


def test_a_cost_that_is_no_number_is_refused(file):
    change_card(file, gmac_512=-1)
    with pytest.raises(EngineFileError, match="gmac_512 must be a finite number"):
        read_engine_file(file.path)


def test_a_device_or_pipe_is_no_engine_file(file):
    file.path.unlink()
    os.mkfifo(file.path)
    with pytest.raises(EngineFileError, match="is no file"):
        read_engine_file(file.path)
