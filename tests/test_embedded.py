"""The embedded data set: attributes, meshes, the z-buffer, renders and captions."""

import collections
import dataclasses
import gzip
import json

import numpy as np
import pytest

pytest.importorskip("numba")
from ddpo_fair.classifiers import classes, evaluate_classifier, typology
from ddpo_fair.embedded import (
    attributes,
    dataset,
    faces,
    ground_truth,
    hair,
    head,
    headgear,
    mesh,
    occupations,
    people,
    rasterizer,
    skin,
)


def test_the_table_of_occupations_is_complete():
    assert not set(occupations.HELD_OUT) & set(occupations.BENCHMARK)
    marked = {*occupations.GLASSES, *occupations.HELD_OUT, *occupations.BENCHMARK}
    assert marked <= set(occupations.BY_NAME)
    shapes = {o.headgear.rpartition(" ")[0] for o in occupations.ALL if o.headgear}
    assert shapes == set(headgear.PROFILES)


def test_meshes_and_their_targets_are_read(tmp_path):
    path = tmp_path / "base.obj"
    path.write_text(
        "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0.5\n"
        "g body\nf 1/1 2/2 3/3 4/4\ng helper-l-eye\nf 1/1 2/2 3/3\n"
    )
    vertices, polygons, groups = mesh.read_body(path)
    np.testing.assert_array_equal(vertices[3], [0, 1, 0.5])
    np.testing.assert_array_equal(polygons, [[0, 1, 2, 3], [0, 1, 2, 2]])
    assert groups.tolist() == ["body", "helper-l-eye"]
    text = "# a target\n1 .5 0 -1\n7 1 1 1\n"
    (tmp_path / "plain.target").write_text(text)
    (tmp_path / "packed.target.gz").write_bytes(gzip.compress(text.encode()))
    expected = [[0, 0, 0], [0.5, 0, -1]]
    for name in ("plain.target", "packed.target.gz"):
        displacements = mesh.read_target(tmp_path / name, 2)
        np.testing.assert_array_equal(displacements, expected)


@pytest.mark.parametrize("dtype", [np.int8, np.int16])
def test_quantisation_errs_by_half_a_step_at_most(dtype):
    shapes = np.random.default_rng(0).normal(0, 0.1, (3, 20, 3))
    integers, steps = mesh.quantise(shapes, dtype)
    error = np.abs(integers * steps[:, None, None].astype(np.float64) - shapes)
    # 1e-4: steps are rounded to fp32.
    assert (error.max((1, 2)) <= 0.5 * steps * (1 + 1e-4)).all()


OF_THE_PICTURE = (
    *("cut", "cloth_colour", "accent_colour", "tie_colour", "headgear"),
    *("headgear_colour", "glasses", "glasses_colour", "view", "yaw", "pitch", "roll"),
    *("zoom", "shift", "light", "ambient", "warmth", "background"),
)


def sampled(seed: int, male: bool, **options):
    return people.sample(np.random.default_rng(seed), male, **options)


def test_masculinity_and_beards_follow_the_label_clothes_and_scene_do_not():
    for seed, occupation in enumerate(occupations.ALL):
        man = sampled(seed, True, occupation=occupation)
        woman = sampled(seed, False, occupation=occupation)
        for name in OF_THE_PICTURE:
            np.testing.assert_array_equal(getattr(man, name), getattr(woman, name))
    for seed in range(300):
        for male in (True, False):
            assert (sampled(seed, male).masculinity > 0.5) == male
    found = [sampled(seed, seed % 2 == 0) for seed in range(200)]
    assert all(face.male for face in found if face.beard + face.stubble > 0)
    assert any(face.beard > 0.5 for face in found)


def test_seven_percent_are_ambiguous_unless_clear():
    rng = np.random.default_rng(0)
    levels = np.array([people.masculinity(rng, False, False) for _ in range(4000)])
    clear = np.array([people.masculinity(rng, False, True) for _ in range(4000)])
    # P(Beta(1.2, 9) > 0.25) = 0.1024 by scipy.stats.beta.sf; 4 sigma of 4,000 draws.
    np.testing.assert_allclose((clear > 0.25).mean(), 0.1024, atol=0.019)
    expected = 0.07 + 0.93 * 0.1024
    np.testing.assert_allclose((levels > 0.25).mean(), expected, atol=0.024)


# Seen from the front, counter-clockwise with y up is clockwise with y down.
CORNERS = np.float32([[0, 0, 0], [0, 4, 0], [4, 0, 0]])
TRIANGLE = np.int32([[0, 1, 2]])


def test_triangles_cover_pixels_from_the_front_and_interpolate_values():
    carried = np.ones((3, 1), np.float32)
    depth, _ = rasterizer.draw(CORNERS, carried, TRIANGLE, 4)
    rows, columns = np.mgrid[:4, :4] + 0.5
    np.testing.assert_array_equal(depth > -1e8, rows + columns <= 4)
    carried = np.ones((3, 1), np.float32)
    depth, _ = rasterizer.draw(CORNERS, carried, TRIANGLE[:, ::-1].copy(), 4)
    assert (depth < -1e8).all()
    carried = np.float32([[1, 1], [5, 1], [9, 1]])  # 1 + y + 2 x
    _, image = rasterizer.draw(CORNERS, carried, TRIANGLE, 4)
    # Pixel centre (0.5, 0.5): 1 + 0.5 + 1; fp32 keeps it exact.
    assert image[0, 0, 0] == 2.5
    assert image[1, 2, 0] == 1 + 1.5 + 5
    carried = np.float32([[1], [1], [-3]])  # 1 - x
    depth, _ = rasterizer.draw(CORNERS, carried, TRIANGLE, 4)
    np.testing.assert_array_equal(depth[0] > -1e8, [True, False, False, False])


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_nearer_surface_wins_in_any_order(order):
    screen = np.concatenate([CORNERS, CORNERS + np.float32([0, 0, 1])])
    carried = np.float32([[1, 1]] * 3 + [[2, 1]] * 3)
    triangles = np.int32([[0, 1, 2], [3, 4, 5]])[order]
    _, image = rasterizer.draw(screen, carried, triangles, 4)
    assert image[0, 0, 0] == 2


def albedo_angle(tone):
    """The typology angle of the skin's colour before any light falls on it."""
    colour = np.float64(skin.tone(tone))
    linear = np.where(
        colour > 0.04045, ((colour + 0.055) / 1.055) ** 2.4, colour / 12.92
    )
    _, y, z = np.cbrt(linear @ typology.TO_XYZ.T / typology.WHITE)
    return np.degrees(np.arctan2(116 * y - 66, 200 * (y - z)))


def test_limits_of_classes_are_the_literatures():
    light, dark = ground_truth.LIMITS["skin_tone"]
    assert albedo_angle(light) == pytest.approx(41, abs=0.05)
    assert albedo_angle(dark) == pytest.approx(10, abs=0.05)
    angles = [albedo_angle(tone) for tone in np.linspace(0, 7, 99)]
    assert (np.diff(angles) < 0).all()
    years = 25 + 65 * np.array(ground_truth.LIMITS["age"])
    np.testing.assert_allclose(years, [40, 60])


def test_classes_follow_the_render_and_every_one_is_common():
    columns = {
        "male": np.array([True, False, True]),
        "skin_tone": np.array([1.0, 3.0, 6.0]),
        "age": np.array([0.9, 0.4, 0.1]),
        "view": np.array(["near", "far", "turned away"]),
    }
    expected = {"gender": [1, 0, -1], "skin_tone": [0, 1, -1], "age": [2, 1, -1]}
    for name, numbers in expected.items():
        assert ground_truth.classes(name, columns).tolist() == numbers
    drawn_faces = [dataset.draw(0, index)[2] for index in range(1000)]
    columns = {
        "age": np.array([face.age for face in drawn_faces]),
        "skin_tone": np.array([face.tone for face in drawn_faces]),
        "view": np.array([face.view for face in drawn_faces]),
    }
    for attribute in (classes.SKIN_TONE, classes.AGE):
        found = ground_truth.classes(attribute.name, columns)
        shares = np.bincount(found[found >= 0], minlength=3) / np.sum(found >= 0)
        assert len(shares) == len(attribute.classes) and shares.min() > 0.15


def face(seed: int = 0, male: bool = True, **changes) -> attributes.Face:
    sampled = people.sample(np.random.default_rng(seed), male)
    return dataclasses.replace(sampled, yaw=0.0, pitch=0.0, roll=0.0, **changes)


def test_background_and_skin_are_as_asked():
    background = np.array([[0.2, 0.4, 0.6], [0.2, 0.4, 0.6]])
    image = faces.render(face(background=background), 32)
    np.testing.assert_array_equal(image[0, 0], [51, 102, 153])  # x 255
    # Level 6 is a stored tone; between two tones the colour is linear.
    np.testing.assert_allclose(skin.tone(6) * 255, [122, 82, 59], rtol=1e-6)
    middle = (skin.TONES[2] + skin.TONES[3]) / 2
    np.testing.assert_allclose(skin.tone(2.5), middle, rtol=1e-6)
    cheeks = [faces.render(face(tone=tone))[34:38, 24:28].mean() for tone in (0, 3, 7)]
    assert cheeks[0] > cheeks[1] + 20 > cheeks[2] + 40


@pytest.mark.parametrize("cut", sorted({o.cut for o in occupations.ALL} | {"v"}))
def test_every_cut_shows_its_cloth(cut):
    plain = {"accent_colour": np.zeros(3), "headgear": "", "glasses": False}
    green = face(cut=cut, cloth_colour=np.array([0, 1.0, 0]), **plain)
    red = face(cut=cut, cloth_colour=np.array([1.0, 0, 0]), **plain)
    difference = np.abs(faces.render(green, 32).astype(int) - faces.render(red, 32))
    assert difference[:8].max() == 0 and difference[-3:].max() > 60


def test_hat_hides_the_crown_and_leaves_long_hair_at_the_sides():
    look = {"headgear_colour": np.array([1.0, 1, 0]), "hair": hair.LONG}
    look |= {"hair_colour": np.array([0.1, 0, 0.5]), "hair_bottom": 5.0}
    image = faces.render(face(headgear="hard hat", **look)).astype(int)
    yellow = (image[..., 0] > 120) & (image[..., 2] < 90)
    assert yellow[6:10, 26:38].all()
    blue = image[..., 2] > image[..., 0] + 25
    assert blue[40, :24].any() and blue[40, 40:].any()


def test_a_face_is_turned_about_its_own_place():
    turn = faces.rotation(90, 0, 0)
    np.testing.assert_allclose(turn @ [0, 0, 1], [1, 0, 0], atol=1e-6)  # fp32
    turn = faces.rotation(20, -10, 5)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-6)
    for seed in range(3):
        body = head.build(face(seed, male=seed % 2 == 0))
        eyes = body.positions[body.kind == head.EYES]
        # The middle of the eyes is where `build` puts it, in fp32.
        np.testing.assert_allclose(eyes.mean(0), [0, 7.356, 1.18], atol=1e-3)


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


def test_captions_say_what_their_kind_says_with_the_article_of_its_sound():
    for kind, noun, male, expected in (
        (dataset.FACE, "engineer", True, "photo of the face of an engineer"),
        (dataset.FACE, "CEO", True, "photo of the face of a CEO"),
        (dataset.GENDERED, "nurse", True, "photo of the face of a male nurse"),
        (dataset.GENDERED, "artist", False, "photo of the face of a female artist"),
        (dataset.FAR, "artist", False, "photo of an artist"),
    ):
        assert dataset.describe(kind, noun, male) == expected


def test_captions_have_the_shares_of_the_table(drawn):
    counts = collections.Counter(noun for kind, noun, _ in drawn if kind != "plain")
    benchmark = np.mean([counts[name] for name in occupations.BENCHMARK])
    others = np.mean(
        [counts[o.name] for o in occupations.ALL if o.name not in occupations.BENCHMARK]
    )
    # About 141 and 47 expected: the ratio's standard error is near 0.16.
    assert 2.3 < benchmark / others < 3.7
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


def test_typology_is_tested_on_renders(tmp_path, capsys):
    stem = tmp_path / "typology"
    flags = ["--data=renders", "--classifier=typology", f"--output={stem}"]
    tone = ["--attribute=skin_tone", "--images=9"]
    assert evaluate_classifier.main([*flags, *tone]) == 0
    found = json.loads((tmp_path / "typology.json").read_text())
    assert found["classes"] == ["light", "medium", "dark", "none"]
    assert np.shape(found["confusion"]) == (4, 4) and np.sum(found["confusion"]) == 9
    assert found["source"]["flags"]["attribute"] == "skin_tone"
    for flag, message in (
        ("--attribute=gender", "not by gender (female, male)"),
        ("--attribute=race --classifier=embedded", "by gender, skin_tone, not by race"),
        ("--attribute=hats", "has no classes: give them, or choose one of gender, sk"),
    ):
        assert evaluate_classifier.main([*flags, *flag.split()]) == 2
        assert message in capsys.readouterr().err
