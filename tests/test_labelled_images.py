"""Labelled images of folders and of TFDS: read as they are, refused in words."""

import io
import os
import tempfile

import made_images
import numpy as np
import pytest
from PIL import Image

from ddpo_fair.classifiers import data_flags, labelled_images
from ddpo_fair.errors import UserError
from ddpo_fair.models import tensor_files

tfds = pytest.importorskip("tensorflow_datasets")
BILINEAR = 2


class CelebrityLike(tfds.core.GeneratorBasedBuilder):
    """Attributes as CelebA has them."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        attributes = {"Male": np.bool_, "Smiling": np.bool_}
        features = {
            "image": tfds.features.Image(shape=(24, 24, 3)),
            "attributes": tfds.features.FeaturesDict(attributes),
            "identity": np.int64,
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index in range(6):
            male = index % 3 == 0
            file = io.BytesIO()
            Image.fromarray(made_images.stripes(int(male), index)).save(file, "PNG")
            file.seek(0)
            attributes = {"Male": male, "Smiling": True}
            yield index, {"image": file, "attributes": attributes, "identity": index}


def test_a_folder_with_splits_is_read_as_it_is(tmp_path):
    root = made_images.folder(tmp_path, {"train": (3, 2), "test": (1, 1)})
    (root / "train" / "female" / "notes.txt").write_text("no image")
    data = labelled_images.open_data(str(root))
    assert data.names == ("female", "male")
    assert set(data.splits) == {"train", "test"}
    split = labelled_images.read(data, "train", (24, 24), BILINEAR)
    assert split.classes.tolist() == [0, 0, 0, 1, 1]
    pixels = split.pixels([3, 0])
    np.testing.assert_array_equal(pixels[0], made_images.stripes(1, 0))
    np.testing.assert_array_equal(pixels[1], made_images.stripes(0, 0))
    small = labelled_images.read(data, "train", (8, 16), BILINEAR).pixels([0])[0]
    expected = Image.fromarray(made_images.stripes(0, 0)).resize((16, 8), BILINEAR)
    np.testing.assert_array_equal(small, np.asarray(expected))


def test_a_folder_without_splits_is_one(tmp_path):
    root = made_images.folder(tmp_path, {"": (2, 2)})
    data = labelled_images.open_data(str(root))
    assert data.splits == ("all",)
    with pytest.raises(UserError, match="no split 'train', but all"):
        labelled_images.read(data, "train", (8, 8), BILINEAR)
    with pytest.raises(UserError, match=r"is no folder.*like it: .*celeb_a"):
        labelled_images.open_data("celeb_b", "Male")


@pytest.mark.parametrize(
    ("mode", "value", "ending", "expected"),
    [
        ("1", 1, "PNG", 255),
        ("L", 77, "PNG", 77),
        ("LA", (77, 255), "PNG", 77),
        ("LA", (0, 51), "PNG", 204),  # a fifth of black on white
        ("P", 9, "GIF", (30, 20, 10)),
        ("P", 9, "PNG", (30, 20, 10)),
        ("P", 8, "PNG", 255),  # whose colour is transparent
        ("RGBA", (1, 2, 3, 255), "TIFF", (1, 2, 3)),
        ("RGBA", (0, 0, 0, 0), "TIFF", 255),
        ("CMYK", (255, 0, 0, 0), "TIFF", (0, 255, 255)),
        ("CMYK", (0, 0, 0, 0), "JPEG", 255),
        ("I;16", 40000, "PNG", 156),  # 40000 x 255 / 65535 = 155.6
        ("I;16", 65535, "TIFF", 255),
        ("I;16B", 257, "TIFF", 1),
        ("F", 0.2, "TIFF", 51),
        ("F", 200.0, "TIFF", None),
        ("F", float("nan"), "TIFF", None),
        ("I", 70000, "TIFF", None),
        ("I", 0, "TIFF", None),
    ],
)
def test_images_of_any_mode_become_rgb(mode, value, ending, expected):
    image = Image.new(mode, (3, 2), value)
    if mode == "P":
        image.putpalette([0] * 27 + [30, 20, 10])
        image.info["transparency"] = 8
    file = io.BytesIO()
    image.save(file, ending)
    opened = Image.open(file)
    if expected is None:
        with pytest.raises(ValueError, match="white"):
            labelled_images.rgb(opened)
        return
    pixels = np.asarray(labelled_images.rgb(opened))
    assert pixels.shape == (2, 3, 3) and (pixels == expected).all(), pixels[0, 0]


def test_palettes_with_transparency_are_on_white():
    image = Image.new("RGBA", (3, 2), (30, 20, 10, 0)).convert("PA")
    assert (np.asarray(labelled_images.rgb(image)) == 255).all()


PAIR = "female/a.png male/b.png"


@pytest.mark.parametrize(
    ("files", "splits", "note"),
    [
        (PAIR, {"all": 2}, ""),
        ("female/a.JFIF male/b.tiff male/c.gif male/d.tif", {"all": 4}, ""),
        (f"{PAIR} .ipynb_checkpoints/x/a.png __MACOSX/male/b.png", {"all": 2}, ""),
        (f"{PAIR} male/._b.png male/.DS_Store", {"all": 2}, ""),
        (f"{PAIR} male/old/c.png", {"all": 2}, "skipped 1 folders inside a class"),
        (f"{PAIR} male/c.heic male/d.heic e", {"all": 2}, "2 .heic files, 1 nameless"),
        ("Train/female/a.png Train/male/b.png Train/c.png", {"Train": 2}, "1 images o"),
        ("train/Female/a.png test/female/a.png train/Male/b.png", "train", ""),
    ],
)
def test_layouts_of_folders(tmp_path, files, splits, note):
    for name in files.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    data = labelled_images.open_data(str(tmp_path))
    if isinstance(splits, dict):
        assert {name: len(rows) for name, rows in data.source.items()} == splits
    assert [name.lower() for name in data.names] == ["female", "male"]
    assert note in data.note and bool(note) == bool(data.note)


def test_what_is_no_file_is_skipped_and_said(tmp_path):
    root = made_images.folder(tmp_path, {"": (2, 2)})
    (root / "male" / "c.png").symlink_to("nowhere.png")
    (root / "male" / "d.png").symlink_to("d.png")
    os.mkfifo(root / "male" / "e.png")
    odd = os.fsdecode(b"\xff.png")
    (root / "male" / "000.png").rename(root / "male" / odd)
    data = labelled_images.open_data(str(root))
    assert "2 links that lead nowhere, 1 that are no regular files" in data.note
    split = labelled_images.read(data, "all", (8, 8), BILINEAR)
    assert split.pixels([0, 1, 2, 3]).shape == (4, 8, 8, 3)


@pytest.mark.parametrize(
    ("splits", "trained", "tested"),
    [
        (("all",), "all", None),
        (("Test", "Train"), "Train", "Test"),
        (("testing", "training"), "training", "testing"),
        (("eval", "training"), "training", "eval"),
        (("TRAIN", "val"), "TRAIN", "val"),
        (("Validation", "train"), "train", "Validation"),
        (("test_set", "train-images", "valid"), "train-images", "test_set"),
        (("test", "train", "validation"), "train", "test"),
        (("other", "train"), "train", None),
        (("a", "b"), "--split,", None),
        (("Train", "train"), "--split,", None),
        (("dev", "train", "val"), "train", "--test_split,"),
    ],
)
def test_splits_are_known_by_name_or_asked_for(splits, trained, tested):
    data = labelled_images.LabelledImages("x", None, splits, ("female", "male"))
    if "--" in trained:
        with pytest.raises(UserError, match=trained):
            data_flags.training_split(data)
        return
    assert data_flags.training_split(data) == trained
    if "--" in str(tested):
        with pytest.raises(UserError, match=tested):
            data_flags.test_split(data, "test_split", trained)
    else:
        assert data_flags.test_split(data, "test_split", trained) == tested


@pytest.mark.parametrize(
    ("files", "part"),
    [
        ("train/female/a.png train/male/b.png female/c.png", "female holds images its"),
        ("img_align_celeba/1.jpg list_attr_celeba.txt", "none means fem.*of list_attr"),
        ("images.zip list_attr_celeba.txt", "link the images into FOLDER/female and"),
        ("cat/a.png man/b.png woman/c.png", "--classes=none,male,female[.]"),
        ("man/train/a.png woman/test/b.png", "inside that of each class .*/man/x.png"),
        ("female/a.png dataset_info.json", "if it is a folder of images, remove"),
        ("female/a.txt", "holds no images"),
    ],
)
def test_folders_that_cannot_be_understood(tmp_path, files, part):
    for name in files.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{")
    with pytest.raises(UserError, match=part):
        labelled_images.open_data(str(tmp_path))


def test_a_host_that_does_not_answer_is_said_at_once(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no network")

    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(UserError, match=r"drive.*img_align_celeba.zip.*downloads/man"):
        labelled_images.open_data("celeb_a", "Male", data_dir=str(tmp_path / "data"))
    assert not list(tmp_path.iterdir())  # nothing stays in the temporary folder


def test_attributes_of_tfds_are_labels(tmp_path):
    pytest.importorskip("array_record")
    where = str(tmp_path)
    data = labelled_images.open_data("celebrity_like", "male", data_dir=where)
    assert (data.label, data.names) == ("attributes/Male", ("female", "male"))
    split = labelled_images.read(data, "train", (24, 24), BILINEAR)
    assert sorted(split.classes.tolist()) == [0, 0, 0, 0, 1, 1]
    row_of = {}
    for row in range(6):
        example = split.source[row]
        row_of[int(example["identity"])] = row
        assert int(split.classes[row]) == (int(example["identity"]) % 3 == 0)
    expected = made_images.stripes(1, 3)
    np.testing.assert_array_equal(split.pixels([row_of[3]])[0], expected)
    prepared = labelled_images.open_data(str(data.source.data_dir), "Male")
    again = labelled_images.read(prepared, "train", (24, 24), BILINEAR)
    np.testing.assert_array_equal(again.classes, split.classes)
    with pytest.raises(UserError, match="attributes/Male"):
        labelled_images.open_data("celebrity_like", "Gender", data_dir=where)
    obvious = labelled_images.open_data("celebrity_like", data_dir=where)
    assert obvious.label == "attributes/Male"
    with pytest.raises(UserError, match="none means female and none means male"):
        labelled_images.open_data("celebrity_like", "Smiling", data_dir=where)
    named = labelled_images.open_data(
        "celebrity_like", "Smiling", ("man", "woman"), data_dir=where
    )
    assert named.names == ("man", "woman")
    (file,) = tmp_path.rglob("*.array_record*")
    for damaged in (file.read_bytes()[:-3], file.read_bytes()[:65536]):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{file} is damaged .* Copy it again"):
            labelled_images.read(named, "train", (24, 24), BILINEAR)


@pytest.mark.parametrize(
    ("content", "fix"),
    [(b"no image", "remove or replace it"), (tensor_files.POINTER, "git lfs pull")],
)
def test_what_is_no_image_is_named(tmp_path, content, fix):
    root = made_images.folder(tmp_path, {"": (2, 2)})
    (root / "male" / "000.png").write_bytes(content)
    data = labelled_images.open_data(str(root))
    split = labelled_images.read(data, "all", (8, 8), BILINEAR)
    with pytest.raises(UserError, match=rf"male/000\.png cannot be read.*{fix}"):
        split.pixels([0, 1, 2])


def test_classes_of_a_folder_must_mean_female_and_male(tmp_path):
    root = made_images.folder(tmp_path, {"": (1, 1)})
    (root / "male").rename(root / "dogs")
    with pytest.raises(UserError, match="none means male"):
        labelled_images.open_data(str(root))
    renamed = labelled_images.open_data(str(root), classes=("men", "women"))
    assert renamed.names == ("men", "women")
    with pytest.raises(UserError, match="says that 'female' is 'men'; name them in"):
        labelled_images.open_data(str(root), classes=("women", "men"))
    with pytest.raises(UserError, match="names 3 classes, but label has 2"):
        labelled_images.open_data(str(root), classes=("men", "women", "none"))
