"""Labelled images of folders and of TFDS: read as they are, refused in words."""

import io

import made_images
import numpy as np
import pytest
from PIL import Image

from ddpo_fair.classifiers import classes, labelled_images
from ddpo_fair.errors import UserError

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


def test_other_kinds_of_files_become_rgb(tmp_path):
    root = made_images.folder(tmp_path, {"": (1, 1)})
    grey = Image.new("L", (10, 10), 77)
    grey.save(root / "female" / "b.jpg", quality=100)
    Image.new("RGBA", (10, 10), (1, 2, 3, 255)).save(root / "male" / "b.png")
    data = labelled_images.open_data(str(root))
    split = labelled_images.read(data, "all", (10, 10), BILINEAR)
    pixels = split.pixels([1, 3])  # after 000.png
    assert (pixels[0] == 77).all()
    assert (pixels[1] == [1, 2, 3]).all()


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
    with pytest.raises(UserError, match="none means female and none male"):
        labelled_images.open_data("celebrity_like", "Smiling", data_dir=where)
    named = labelled_images.open_data(
        "celebrity_like", "Smiling", ("man", "woman"), data_dir=where
    )
    assert named.names == ("man", "woman")


def test_unknown_data_sets_are_refused():
    with pytest.raises(UserError, match=r"is no folder.*like it: .*celeb_a"):
        labelled_images.open_data("celeb_b", "Male")


def test_what_is_no_image_is_named(tmp_path):
    root = made_images.folder(tmp_path, {"": (2, 2)})
    (root / "male" / "000.png").write_bytes(b"no image")
    data = labelled_images.open_data(str(root))
    split = labelled_images.read(data, "all", (8, 8), BILINEAR)
    with pytest.raises(UserError, match=r"male/000\.png cannot be read"):
        split.pixels([0, 1, 2])


@pytest.mark.parametrize("names", [(), ("a.txt",)])
def test_a_folder_without_pictures_is_refused(tmp_path, names):
    (tmp_path / "female").mkdir()
    for name in names:
        (tmp_path / "female" / name).write_text("")
    with pytest.raises(UserError, match="holds no images"):
        labelled_images.open_data(str(tmp_path))


def test_classes_of_a_folder_must_mean_female_and_male(tmp_path):
    root = made_images.folder(tmp_path, {"": (1, 1)})
    (root / "male").rename(root / "dogs")
    with pytest.raises(UserError, match="none means male"):
        labelled_images.open_data(str(root))
    renamed = labelled_images.open_data(str(root), classes=("men", "women"))
    assert renamed.names == ("men", "women")
    with pytest.raises(UserError, match="names 3 classes, but label has 2"):
        labelled_images.open_data(str(root), classes=("men", "women", "none"))


def test_meanings():
    found = classes.meanings([" Woman", "MALE", "other", "girl"])
    assert found.tolist() == [0, 1, -1, 0]
