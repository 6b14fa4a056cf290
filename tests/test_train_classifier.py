"""Training a classifier: from a folder of images to config.classifier."""

import json

import jax
import made_images
import numpy as np
import pytest
from scipy import optimize

pytest.importorskip("tensorflow_datasets")
from ddpo_fair import parallel
from ddpo_fair.classifiers import (
    classifier,
    classifier_training,
    evaluate_classifier,
    supervised,
    train_classifier,
)
from ddpo_fair.errors import UserError
from ddpo_fair.models import sources


@pytest.fixture(scope="module", autouse=True)
def as_in_the_commands():
    """Unlike in the other tests; on one device, where the update compiles sooner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "devices", lambda: jax.devices()[:1])
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            yield


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    return made_images.folder(root, {"train": (12, 9), "test": (5, 7)})


@pytest.fixture(scope="module")
def trained(tiny, images, tmp_path_factory):
    """A folder, and the command's flags without --output."""
    flags = [f"--data={images}", f"--start={tiny[1]}", "--steps=4", "--batch=16"]
    output = tmp_path_factory.mktemp("trained") / "vit"
    assert train_classifier.main([*flags, f"--output={output}"]) == 0
    return output, flags


def test_training_writes_what_config_classifier_takes(trained):
    output, _ = trained
    model = classifier.load(output)
    assert model.network.config.id2label == ("Man", "Woman")  # the start's own
    assert {path.name for path in output.iterdir()} == {
        "config.json",
        "evaluation.json",
        "evaluation.png",
        "model.safetensors",
        "preprocessor_config.json",
        "training.json",
    }
    content = json.loads((output / "evaluation.json").read_text())
    assert content["images"] == np.sum(content["confusion"]) == 12
    assert content["source"]["split"] == "test"


def test_training_is_a_function_of_its_flags(trained, tmp_path, capsys):
    output, flags = trained
    assert train_classifier.main([*flags, f"--output={tmp_path / 'vit'}"]) == 0
    names = "config.json", "model.safetensors"
    first, second = (
        [(place / name).read_bytes() for name in names]
        for place in (output, tmp_path / "vit")
    )
    assert first == second
    assert train_classifier.main([*flags, f"--output={output}"]) == 2
    assert "holds the finished classifier" in capsys.readouterr().err
    assert train_classifier.main([*flags, "--seed=1", f"--output={output}"]) == 2
    assert "seed was 0 and is now 1" in capsys.readouterr().err


def test_evaluation_agrees_with_that_of_the_training(trained, images, tmp_path):
    output, _ = trained
    stem = tmp_path / "again"
    flags = [f"--data={images}", f"--classifier={output}", f"--output={stem}"]
    for _ in range(2):  # it may replace its own
        assert evaluate_classifier.main(flags) == 0
    found, expected = (
        json.loads(path.read_text())
        for path in (tmp_path / "again.json", output / "evaluation.json")
    )
    assert found.pop("source") != expected.pop("source")
    assert found == expected
    flags[-1] = f"--output={output / 'config'}"
    assert evaluate_classifier.main(flags) == 2  # config.json is none of its own


def test_one_class_alone_is_refused(tiny, tmp_path, capsys):
    lonely = made_images.folder(tmp_path / "data", {"train": (2, 0), "test": (1, 1)})
    flags = [f"--data={lonely}", f"--output={tmp_path / 'vit'}", f"--start={tiny[1]}"]
    assert train_classifier.main(flags) == 2
    assert "has 2 images, but none that is male" in capsys.readouterr().err
    assert not (tmp_path / "vit").exists()


def test_start_is_kept_or_made_from_scratch(tiny, tmp_path):
    start = tiny[1]
    kept = classifier_training.begin(start, ("female", "male"), 0)
    before = classifier.load(start).params["classifier"]["kernel"]
    np.testing.assert_array_equal(
        kept.classifier.params["classifier"]["kernel"], before
    )
    assert kept.columns.tolist() == [1, 0]  # its labels are Man, Woman
    names = ("female", "male", "none")
    other = classifier_training.begin(start, names, 0)
    assert other.classifier.params["classifier"]["kernel"].shape == (16, 3)
    assert other.config["id2label"] == {"0": "female", "1": "male", "2": "none"}
    assert other.columns.tolist() == [0, 1, 2]
    folder = sources.classifier_folder("embedded")
    start = classifier_training.begin(folder, ("men", "women"), 3, image_size=16)
    classifier_training.save(tmp_path, start, start.classifier.params)
    read = classifier.load(tmp_path)
    assert read.preprocessing == start.classifier.preprocessing
    np.testing.assert_array_equal(read.classes, [[0, 1], [1, 0]])


def test_as_many_of_each_class_are_held_out_and_batches_come_in_order():
    classes = np.array([0] * 20 + [1] * 50 + [2] * 30)
    rows, kept = classifier_training.hold_out(classes, 0.25, seed=0)
    assert np.bincount(classes[kept]).tolist() == [5, 5, 5]  # a quarter of 20
    assert sorted([*rows, *kept]) == list(range(100))
    _, other = classifier_training.hold_out(classes, 0.25, seed=1)
    assert other.tolist() != kept.tolist()
    with pytest.raises(UserError, match="has 1 images"):
        classifier_training.hold_out(np.array([0, 0, 1]), 0.5, seed=0)

    def batch(step):
        if step == 5:
            raise UserError("unreadable")
        return step

    batches = supervised.ahead(batch, 2, 9)
    assert [next(batches) for _ in range(3)] == [2, 3, 4]
    with pytest.raises(UserError, match="unreadable"):
        next(batches)
    assert list(supervised.ahead(batch, 6, 8)) == [6, 7]


@pytest.mark.parametrize("num_classes", [2, 3])
def test_temperature_is_the_likeliest(num_classes):
    draw = np.random.default_rng(0)
    labels = draw.integers(0, num_classes, 500)
    noise = draw.normal(0, 0.7, (500, num_classes))
    logits = 4.0 * (np.eye(num_classes)[labels] + noise)  # overconfident

    def loss(temperature):
        powers = np.exp(logits / temperature)
        return -np.log(powers[np.arange(500), labels] / powers.sum(1)).mean()

    best = optimize.minimize_scalar(loss, bounds=(0.3, 4.4)).x
    head = {"classifier": {"kernel": np.ones((2, 3))}, "other": np.ones(3)}
    found = classifier_training.calibrated(head, logits, labels)
    np.testing.assert_allclose(1 / found["classifier"]["kernel"], best, rtol=0.01)
    np.testing.assert_array_equal(found["other"], 1.0)


@pytest.mark.parametrize("content", ["[1]", "7", "{", 3000 * "["])
def test_settings_that_are_none_are_refused(tmp_path, content):
    (tmp_path / classifier_training.SETTINGS).write_text(content)
    (tmp_path / "saved").write_text("")  # else nothing is bound yet
    with pytest.raises(UserError, match="cannot be used"):
        classifier_training.bind(tmp_path, {"seed": 0})


def test_a_start_that_failed_binds_no_folder(tmp_path):
    for images in (3, 2):  # one could not be read, and was removed
        classifier_training.bind(tmp_path, {"images": images})
    (tmp_path / classifier_training.WORK).mkdir()
    (tmp_path / classifier_training.WORK / "checkpoint").write_text("")
    with pytest.raises(UserError, match="images was 2 and is now 3"):
        classifier_training.bind(tmp_path, {"images": 3})
