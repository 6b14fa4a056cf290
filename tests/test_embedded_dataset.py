"""Examples: functions of (seed, index), captioned truly, in the intended shares."""

import collections

import numpy as np
import pytest

pytest.importorskip("numba")
from ddpo_fair.embedded import dataset, occupations

NUM_DRAWS = 3000


@pytest.fixture(scope="module")
def drawn():
    return [dataset.draw(0, index) for index in range(NUM_DRAWS)]


def test_example_depends_on_seed_and_index_only():
    first = dataset.example(0, 7, 16)
    dataset.example(0, 8, 16)
    again = dataset.example(0, 7, 16)
    np.testing.assert_array_equal(first.pop("image"), again.pop("image"))
    np.testing.assert_array_equal(first.pop("ancestry"), again.pop("ancestry"))
    assert first == again
    assert dataset.example(1, 7, 16)["masculinity"] != first["masculinity"]


@pytest.mark.parametrize(
    ("kind", "male", "expected"),
    [
        (dataset.FACE, True, "photo of the face of a nurse"),
        (dataset.GENDERED, True, "photo of the face of a male nurse"),
        (dataset.GENDERED, False, "photo of the face of a female nurse"),
        (dataset.FAR, False, "photo of a nurse"),
    ],
)
def test_caption_says_what_its_kind_says(kind, male, expected):
    assert dataset.describe(kind, "nurse", male) == expected


def test_benchmark_occupations_come_three_times_as_often(drawn):
    counts = collections.Counter(noun for kind, noun, _ in drawn if kind != "plain")
    benchmark = np.mean([counts[name] for name in occupations.BENCHMARK])
    others = np.mean(
        [counts[o.name] for o in occupations.ALL if o.name not in occupations.BENCHMARK]
    )
    # About 141 and 47 expected: the ratio's standard error is near 0.16.
    assert 2.3 < benchmark / others < 3.7


def test_men_have_the_share_of_the_table(drawn):
    shares, males = [], []
    for kind, noun, face in drawn:
        if kind in (dataset.FACE, dataset.FAR):
            shares.append(occupations.BY_NAME[noun].men)
            males.append(face.male)
    shares, males = np.array(shares), np.array(males)
    error = np.sqrt((shares * (1 - shares)).sum())
    assert abs(males.sum() - shares.sum()) < 4 * error
    skewed = shares > 0.8
    assert males[skewed].mean() > 0.8


def test_man_and_woman_are_what_they_say(drawn):
    labels = {
        noun: {f.male for _, n, f in drawn if n == noun} for noun in ("man", "woman")
    }
    assert labels == {"man": {True}, "woman": {False}}


def test_tfds_builder_returns_the_rendered_images(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")
    from ddpo_fair.embedded import tfds_faces

    sizes = tfds_faces.Sizes(name="tiny", num_train=24, num_test=8)
    builder = tfds_faces.StereotypedFaces(
        data_dir=tmp_path, config=sizes, file_format="array_record"
    )
    builder.download_and_prepare()
    train, test = builder.as_data_source(split=["train", "test"])
    assert len(train) == 24 and len(test) == 8
    by_caption = {example["caption"]: example for example in train}
    expected = dataset.example(0, 5)
    found = by_caption[expected["caption"].encode()]
    np.testing.assert_array_equal(found["image"], expected["image"])
    assert found["male"] == expected["male"]
