"""`lowdose complete`: a picture file and what of it was measured, completed and written for other programs."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image

from lowdose.config import complete as complete_command
from lowdose.config.complete import Measured, run_complete
from lowdose.config.errors import ConfigError
from lowdose.reconstruction import complete

RAMP = np.add.outer(np.arange(64, dtype=np.float32), np.arange(64, dtype=np.float32))
EVERY_FOURTH = np.zeros((64, 64), bool)
EVERY_FOURTH[::4, ::4] = True


@pytest.fixture
def picture(tmp_path):
    """Return a calibrated TIFF in which every pixel that was not measured is NaN."""
    path = tmp_path / "sparse.tif"
    values = np.where(EVERY_FOURTH, RAMP, np.nan).astype(np.float32)
    tifffile.imwrite(path, values, imagej=True, resolution=(10, 10), metadata={"unit": "nm"})
    return path


def layer(folder, name):
    return tifffile.imread(folder / f"{name}.tif").squeeze()


def run(path, measured=Measured(), *, engine="linear", form="tiff", out=None):  # noqa: B008 frozen
    return run_complete(path, measured, engine=engine, form=form, out=out)


def test_a_picture_with_nan_is_completed_as_complete_does(picture, capsys):
    assert run(picture) == 0
    folder = picture.with_name("sparse-completed")
    image, uncertainty = complete(np.where(EVERY_FOURTH, RAMP, 0), EVERY_FOURTH, engine="linear")
    np.testing.assert_allclose(layer(folder, "completed"), image, atol=1e-4)
    np.testing.assert_allclose(layer(folder, "uncertainty"), uncertainty, atol=1e-4)
    np.testing.assert_array_equal(layer(folder, "mask"), EVERY_FOURTH)
    np.testing.assert_array_equal(layer(folder, "sparse"), np.where(EVERY_FOURTH, RAMP, 0))
    assert "6.25% measured, completed by linear" in capsys.readouterr().out


def test_calibration_and_what_is_inferred_are_told(picture):
    run(picture)
    described = json.loads((picture.with_name("sparse-completed") / "metadata.json").read_text())
    assert described["picture"] == "sparse.tif"
    assert described["layers"]["completed"]["inferred"] == "where mask is 0"
    assert described["layers"]["completed"]["pixel_size_nm"] == pytest.approx(0.1)
    assert described["layers"]["sparse"]["label"].startswith("measured: as given")
    assert "pixel_size_nm" not in described


def test_a_pixel_size_that_is_not_known_is_not_made_up(tmp_path):
    np.save(tmp_path / "bare.npy", np.where(EVERY_FOURTH, RAMP, np.nan))
    run(tmp_path / "bare.npy")
    folder = tmp_path / "bare-completed"
    described = json.loads((folder / "metadata.json").read_text())
    assert described["pixel_size_nm"].startswith("not known: the file tells none that is alike along rows and columns")
    assert "pixel_size_nm" not in described["layers"]["completed"]
    with tifffile.TiffFile(folder / "completed.tif") as file:
        assert file.imagej_metadata["unit"] == "pixel"
        assert file.pages[0].tags["XResolution"].value == (1, 1)


@pytest.mark.parametrize("form", ["hspy", "emd"])
def test_no_beam_is_made_up(picture, form):
    run(picture, form=form, out=picture.with_name("out"))
    names = []
    with h5py.File(picture.with_name("out")) as file:
        file.visititems(lambda name, item: names.extend([name, *item.attrs]))
    assert not [name for name in names if any(word in name for word in ("beam", "instrument", "source"))]


def test_nan_in_a_mask_is_not_measured(tmp_path):
    np.save(tmp_path / "values.npy", np.where(EVERY_FOURTH, RAMP, 1e9))
    np.save(tmp_path / "mask.npy", np.where(EVERY_FOURTH, 1.0, np.nan))
    run(tmp_path / "values.npy", Measured(mask=tmp_path / "mask.npy"))
    np.testing.assert_array_equal(layer(tmp_path / "values-completed", "mask"), EVERY_FOURTH)


def test_a_mask_file_chooses_and_the_other_pixels_are_not_looked_at(tmp_path):
    np.save(tmp_path / "values.npy", np.where(EVERY_FOURTH, RAMP, 1e9))
    np.save(tmp_path / "mask.npy", EVERY_FOURTH)
    run(tmp_path / "values.npy", Measured(mask=tmp_path / "mask.npy"), form="emd", out=tmp_path / "out.emd")
    with h5py.File(tmp_path / "out.emd") as file:
        found = []
        file.visititems(lambda name, item: found.append(item[()]) if name.endswith("completed/data") else None)
    assert found[0].max() < 130


def test_a_pattern_tries_the_completion_of_a_whole_picture(tmp_path):
    np.save(tmp_path / "whole.npy", RAMP)
    run(tmp_path / "whole.npy", Measured(pattern="spiral", coverage="1/8"))
    folder = tmp_path / "whole-completed"
    assert 0.08 < layer(folder, "mask").mean() < 0.2
    assert np.abs(layer(folder, "completed") - RAMP)[8:-8, 8:-8].max() < 1


def test_a_completion_that_is_tried_out_is_told_with_its_errors(tmp_path, capsys):
    np.save(tmp_path / "whole.npy", RAMP)
    run(tmp_path / "whole.npy", Measured(pattern="lattice", coverage="1/16"), engine="nearest")
    said = capsys.readouterr().out
    mask = layer(tmp_path / "whole-completed", "mask").astype(bool)
    error, of_linear = (
        np.sqrt(np.mean((complete(RAMP, mask, engine=name)[0] - RAMP) ** 2)) for name in ("nearest", "linear")
    )
    assert f"RMS error against the picture {error:.4g} ({error / of_linear:.2f} of linear infill's)" in said
    assert "the picture blurred 5×5" in said


def test_what_the_default_engine_estimates_is_told(picture, capsys):
    run(picture, engine="auto")
    assert "completed by live_default, which estimates the picture blurred 5×5" in capsys.readouterr().out


def test_a_picture_measured_everywhere_comes_out_as_it_is_and_says_by_what(tmp_path, capsys):
    np.save(tmp_path / "whole.npy", RAMP)
    np.save(tmp_path / "mask.npy", np.ones(RAMP.shape, bool))
    run(tmp_path / "whole.npy", Measured(mask=tmp_path / "mask.npy"), engine="auto")
    np.testing.assert_allclose(layer(tmp_path / "whole-completed", "completed"), RAMP, atol=1e-4)
    assert "100.00% measured, completed by linear\n" in capsys.readouterr().out


def test_a_stack_of_masks_is_refused(tmp_path):
    np.save(tmp_path / "whole.npy", RAMP)
    np.save(tmp_path / "mask.npy", np.stack([EVERY_FOURTH] * 3))
    with pytest.raises(ConfigError, match=r"mask\.npy holds 3 images"):
        run(tmp_path / "whole.npy", Measured(mask=tmp_path / "mask.npy"))


def test_nothing_is_completed_for_a_place_that_is_taken(picture, monkeypatch):
    monkeypatch.setattr(complete_command, "completed", lambda *_, **__: 1 / 0)
    picture.with_name("sparse-completed").mkdir()
    with pytest.raises(ConfigError, match="exists already, nothing is overwritten: name another with --out"):
        run(picture)


@pytest.mark.parametrize(
    ("measured", "complaint"),
    [
        (Measured(), "nothing says which pixels"),
        (Measured(coverage="1/8"), "--coverage needs the --pattern"),
        (Measured(mask=True, pattern="spiral"), "either --mask or --pattern"),
        (Measured(pattern="spyral"), "spiral"),
    ],
)
def test_what_does_not_say_what_was_measured_is_refused(tmp_path, measured, complaint):
    np.save(tmp_path / "whole.npy", RAMP)
    with pytest.raises(ConfigError, match=complaint):
        run(tmp_path / "whole.npy", measured)


def test_a_lossy_mask_is_refused(tmp_path, picture):
    Image.fromarray(EVERY_FOURTH.astype(np.uint8) * 255).save(tmp_path / "mask.jpg")
    with pytest.raises(ConfigError, match=r"mask\.jpg is JPEG, which leaves no pixel 0: store the mask as PNG"):
        run(picture, Measured(mask=tmp_path / "mask.jpg"))


@pytest.mark.parametrize(("form", "out"), [("tiff", "done.tif"), ("tiff", "done.hspy"), ("hspy", "done.TIF")])
def test_what_is_written_is_not_named_like_a_file_of_another_format(picture, tmp_path, form, out):
    with pytest.raises(ConfigError, match=rf"--format {form} writes .*, got --out .*{out}: name it so"):
        run(picture, form=form, out=tmp_path / out)
    assert not (tmp_path / out).exists()


def test_the_engine_that_was_meant_is_named(picture):
    with pytest.raises(ConfigError, match="unknown engine 'live_defaul': did you mean 'live_default'"):
        run(picture, engine="live_defaul")


def test_a_mask_of_another_size_is_refused(tmp_path):
    np.save(tmp_path / "whole.npy", RAMP)
    np.save(tmp_path / "mask.npy", EVERY_FOURTH[:40])
    with pytest.raises(ConfigError, match="must be of one size"):
        run(tmp_path / "whole.npy", Measured(mask=tmp_path / "mask.npy"))


def test_formats_folders_and_stacks_that_cannot_be_are_refused_before_anything_is_written(tmp_path, picture):
    np.save(tmp_path / "stack.npy", np.full((3, 64, 64), np.nan))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="unknown --format 'csv'"):
        run(picture, form="csv")
    with pytest.raises(ConfigError, match="there is no folder"):
        run(picture, out=tmp_path / "nowhere" / "out")
    with pytest.raises(ConfigError, match="holds 3 images"):
        run(tmp_path / "stack.npy")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_what_is_the_name_of_no_file_is_refused(picture, name):
    with pytest.raises(ConfigError, match="expected the name of a file"):
        run(Path(name))
    with pytest.raises(ConfigError, match="expected the name of a file"):
        run(picture, out=Path(name))


def test_control_characters_in_a_name_do_not_reach_the_terminal(picture, capsys):
    run(picture, out=picture.with_name("a\x1b[31m"))
    assert "a?[31m: 6.25% measured" in capsys.readouterr().out
