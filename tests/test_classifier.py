"""The classifier: whatever its labels are called and ordered, female comes first."""

import json

import jax
import numpy as np
import pytest
import tiny_model

from ddpo_fair import parallel
from ddpo_fair.classifiers import augmentation, classifier
from ddpo_fair.errors import UserError


@pytest.fixture
def images():
    return np.random.default_rng(0).random((8, 16, 16, 3), dtype=np.float32)


def classify(folder, images):
    model = classifier.load(folder)
    return np.asarray(
        jax.jit(lambda x: classifier.probabilities(model, model.params, x))(images)
    )


@pytest.mark.parametrize(
    ("labels", "women", "men"),
    [
        (("Man", "Woman"), [1], [0]),
        (("female", "male"), [0], [1]),
        (("F", "M"), [0], [1]),
        (("girl", "men", "other", "woman"), [0, 3], [1]),
    ],
)
def test_women_come_first_and_labels_that_mean_the_same_are_added(
    tmp_path, images, labels, women, men
):
    folder = tiny_model.save_classifier(tmp_path, labels)
    model = classifier.load(folder)
    # Every label's probability by hand: pixels in 256 levels, mean and std 1/2.
    pixels = (np.round(images * 255) / 255 - 0.5) / 0.5
    apply = jax.jit(model.network.apply)
    logits = np.float64(apply({"params": model.params}, np.float32(pixels)))
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    every = weights / weights.sum(axis=1, keepdims=True)
    expected = np.stack([every[:, x].sum(axis=1) for x in (women, men)], axis=1)
    np.testing.assert_allclose(classify(folder, images), expected, atol=1e-5)


def test_other_labels_are_refused_by_name(tmp_path):
    folder = tiny_model.save_classifier(tmp_path, ("cat", "dog"))
    said = "cat, dog.*none means female and none means male.*id2label"
    with pytest.raises(UserError, match=said):
        classifier.load(folder)


def test_all_devices_classify_and_a_broken_image_is_not_a_number(tmp_path, images):
    model = classifier.load(tiny_model.save_classifier(tmp_path))
    found = classifier.classify((model,), (model.params,), parallel.split(images))
    assert found.shape == (8, 1, 2)
    expected = classify(tmp_path, images)
    np.testing.assert_allclose(parallel.gather(found), expected, atol=1e-5)
    images[3, 0, 0, 0] = np.nan
    found = classify(tiny_model.save_classifier(tmp_path), images)
    assert np.isnan(found[3]).all() and np.isfinite(np.delete(found, 3, axis=0)).all()


def test_views_are_averaged_each_the_same_for_all_images(tmp_path, images):
    folder = tiny_model.save_classifier(tmp_path)
    alone = [classify(folder, images)]
    for key in jax.random.split(jax.random.key(3), 2):
        seen = [augmentation.augment(key, 2 * image[None] - 1) for image in images]
        alone.append(classify(folder, (np.concatenate(seen) + 1) / 2))
    model = classifier.load(folder)
    own = (model,), (model.params,), parallel.split(images)
    found, plain = (parallel.gather(classifier.classify(*own, v)) for v in (3, 1))
    np.testing.assert_allclose(found, np.mean(alone, axis=0), atol=1e-5)
    np.testing.assert_allclose(plain, alone[0], atol=1e-5)
    assert np.abs(found - plain).max() > 1e-3


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"do_center_crop": True}, "do_center_crop"),
        ({"size": {"shortest_edge": 16}}, "must be image_size=16 of config"),
        ({"size": 32}, "must be image_size=16 of config"),
        ({"resample": 1}, "resample=1 must be 0"),
        ({"resample": False}, "resample=False must be 0"),
        ({"do_resize": False}, "do_resize=False must be true"),
        ({"do_normalize": "false"}, "do_normalize='false' must be true or false"),
        ({"do_rescale": 0}, "do_rescale=0 must be true or false"),
        ({"rescale_factor": -1e30}, "rescale_factor=-1e[+]30 must be from 1e-05 to 1"),
        ({"rescale_factor": 10**400}, "rescale_factor=10000"),
        ({"rescale_factor": float("nan")}, "rescale_factor=nan"),
        ({"image_std": [0.5, 0.5, -0.5]}, "image_std=.* must be a list of three"),
        ({"image_std": [1e-30] * 3}, "image_std=.* must be a list of three"),
        ({"image_mean": [1e30] * 3}, "image_mean=.* must be a list of three"),
        ({"image_mean": [127.5] * 3}, "image_mean=.* a list of three numbers, -1 to 1"),
        ({"crop_pct": 0.875}, "crop_pct=0.875 must be false"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order=True must be false"),
        ({"image_processor_type": "ConvNextImageProcessor"}, "must be ViTImageProc"),
    ],
)
def test_unknown_preprocessing_is_refused(tmp_path, change, part):
    folder = tiny_model.save_classifier(tmp_path)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**tiny_model.PREPROCESSOR, **change}))
    with pytest.raises(UserError, match=part):
        classifier.load(folder)


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_labels_that_do_not_exclude_each_other_are_refused(tmp_path, problem):
    folder = tiny_model.save_classifier(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"problem_type": problem}))
    with pytest.raises(UserError, match=f"problem_type='{problem}'.* one label"):
        classifier.load(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"resample": 2},  # bilinear
        {"resample": 3},  # bicubic
        {"do_rescale": False, "image_mean": [128.0] * 3, "image_std": [50.0] * 3},
        {"do_normalize": False, "do_center_crop": None, "size": [16, 16]},
        {"image_processor_type": "ViTImageProcessorFast", "do_convert_rgb": True},
    ],
)
def test_preprocessing_is_that_of_transformers(tmp_path, changes):
    transformers = pytest.importorskip("transformers")
    folder = tiny_model.save_classifier(tmp_path)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    settings = {**tiny_model.PREPROCESSOR, "image_mean": mean, "image_std": std}
    settings |= changes
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    processor = transformers.ViTImageProcessorPil.from_pretrained(folder)
    large = np.random.default_rng(1).integers(0, 256, (2, 72, 72, 3), np.uint8)
    expected = processor(list(large), return_tensors="np")["pixel_values"]
    settings = classifier.load(folder).preprocessing
    found = classifier.preprocess(settings, large.astype(np.float32) / 255)
    # float32 rounding; a level of 256 would be 0.0171
    np.testing.assert_allclose(found.transpose(0, 3, 1, 2), expected, atol=1e-5)
