import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from lowdose.acquisition.display.snapshot import save_snapshot, write_picture, write_snapshot
from lowdose.acquisition.display.view_model import ViewModel


@pytest.fixture
def picture(make_frame):
    model = ViewModel()
    model.accept_frame(make_frame(12, scan_id="0123456789abcdef"), 0)
    return model.take()


def test_picture_layers_and_description_are_written(tmp_path, picture):
    path = save_snapshot(tmp_path / "new", picture, {"frames": 3})
    assert path.name == "lowdose-snapshot-01234567-12"
    np.testing.assert_array_equal(np.asarray(Image.open(path / "picture.png")), picture.completed)
    described = json.loads((path / "metadata.json").read_text(encoding="utf-8"))
    assert described["inferred"] is True
    assert described["scan_id"] == "0123456789abcdef"
    assert described["coverage"] == 0.25
    assert described["uncertainty_kind"] == "placeholder"
    assert described["counters"] == {"frames": 3}
    assert described["engines"] == [{"name": "nearest", "digest": "", "precision": "fp32"}]
    assert described["layers"]["completed"]["inferred"] == "where mask is 0"
    assert described["frames"][0]["frame_index"] == 12
    names = ["completed.tif", "mask.tif", "metadata.json", "picture.png", "sparse.tif", "uncertainty.tif"]
    assert sorted(p.name for p in path.iterdir()) == names
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name]


def test_the_layers_are_calibrated_and_hold_what_was_measured_and_made(tmp_path, picture):
    path = save_snapshot(tmp_path, picture, {})
    frame = picture.frame
    expected = {"completed": frame.image[0], "sparse": frame.measured[0], "mask": frame.mask}
    for name, values in expected.items():
        with tifffile.TiffFile(path / f"{name}.tif") as file:
            np.testing.assert_array_equal(file.asarray().squeeze(), values)
            assert file.imagej_metadata["unit"] == "nm"
            pixels, per = file.pages[0].tags["XResolution"].value
            assert per / pixels == pytest.approx(frame.grid.pixel_size_nm, rel=1e-5)


def test_a_snapshot_never_overwrites_another(tmp_path, picture):
    names = [save_snapshot(tmp_path, picture, {}).name for _ in range(3)]
    stem = "lowdose-snapshot-01234567-12"
    assert names == [stem, f"{stem}-2", f"{stem}-3"]


def test_a_scan_id_cannot_lead_out_of_the_folder(tmp_path, make_frame):
    model = ViewModel()
    model.accept_frame(make_frame(0, scan_id="../../x"), 0)
    assert save_snapshot(tmp_path, model.take(), {}).parent == tmp_path


def test_a_folder_that_cannot_be_written_gives_a_text(tmp_path, picture):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    text = write_snapshot(in_the_way / "folder", picture, {})
    assert text.startswith("no snapshot: ")


def test_a_snapshot_that_appears_is_whole(tmp_path, picture, monkeypatch):
    def killed(part, _):
        assert {file.name for file in part.iterdir()} >= {"completed.tif", "metadata.json", "picture.png"}
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        save_snapshot(tmp_path, picture, {})
    assert list(tmp_path.iterdir()) == []


def _full(*_, **__):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("writes", [(Image.Image, "save"), (tifffile, "imwrite")], ids=["picture", "layers"])
def test_a_full_disk_gives_a_text_and_leaves_nothing(tmp_path, picture, monkeypatch, writes):
    monkeypatch.setattr(*writes, _full)
    text = write_snapshot(tmp_path, picture, {})
    assert text.startswith("no snapshot: ")
    assert "No space left on device" in text
    assert list(tmp_path.iterdir()) == []


def test_write_picture_puts_measured_beside_completed(tmp_path, make_frame):
    path = tmp_path / "out.png"
    write_picture(path, make_frame(0, left=0, right=100), (0, 100))
    image = np.asarray(Image.open(path))
    assert image.shape == (64, 64 + 4 + 64)
    assert (image[1, :64] == 0).all()
    assert image[0, 63] == 255
    assert image[:, 68].tolist() == [0] * 64
    assert image[:, -1].tolist() == [255] * 64
