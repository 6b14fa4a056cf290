"""The embedded model's pretraining: its loop resumes, its changes of units hold."""

import concurrent.futures
import importlib.util
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from refusals import refused

from ddpo_fair.classifiers import augmentation, classes, classifier, supervised
from ddpo_fair.diffusion import networks, stable_diffusion
from ddpo_fair.embedded import (
    dataset,
    pretrain,
    pretrain_classifier,
    pretrain_flow,
    pretrain_vae,
)
from ddpo_fair.errors import UserError
from ddpo_fair.models import sources, vae, weights


@pytest.fixture(autouse=True)
def standard_promotion():
    """As in the command, and unlike in the other tests."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def fit(folder, num_steps, batch):
    """A linear regression by the stages' own loop."""
    weights = jnp.array([1.0, -2.0, 3.0])

    def loss(params, x, key):
        noise = 0.1 * jax.random.normal(key, x.shape[:1])
        return jnp.mean((x @ params["kernel"] - x @ weights - noise) ** 2)

    start, adam = {"kernel": jnp.zeros(3)}, optax.adam(0.05)
    return supervised.fit("noise", folder, start, adam, loss, batch, 0, num_steps)


def rows(step):
    return np.random.default_rng([0, step]).normal(size=(16, 3)).astype(np.float32)


def test_only_drawing_needs_numba(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    spec = importlib.util.find_spec("ddpo_fair.embedded.rasterizer")
    without = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(without)
    for function in (without.draw, without.normals):
        with pytest.raises(UserError, match=r'pip install "ddpo_fair\[data\]"'):
            function(None, None)


@pytest.mark.parametrize(
    ("flag", "part"),
    [
        ("--images=0", "--images='0' must be an integer in the range [2000,"),
        ("--seed=-1", "--seed='-1' must be"),
        ("--stages=vae,unet", "must be of vae, classifier"),
        ("--stages=flow", "which does not exist; name the stage vae, too."),
        ("--stages=vae,age", "which does not exist; name the stage classifier, too."),
        ("--output={tmp}/full", "exists and is not empty"),
        ("--output=/dev/null", "exists and is not a folder"),
        ("--output=/proc/none/x", "cannot be written (No such file"),
        ("--work_dir={tmp}/other", "seed was 1 and is now 0"),
        ("extra", "'extra' is no flag"),
    ],
)
def test_flags_are_checked_first(flag, part, tmp_path, capsys):
    for name in ("full/x", "other/pretraining.json", "other/faces_0.npz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"seed": 1}')
    flags = [f"--work_dir={tmp_path / 'a'}", f"--output={tmp_path / 'b'}"]
    flags.append(flag.replace("{tmp}", str(tmp_path)))
    assert part in refused(pretrain.main, flags, capsys)


def test_what_is_damaged_is_made_again(tmp_path, monkeypatch):
    pool = concurrent.futures.ThreadPoolExecutor(1)
    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor", lambda *_: pool)
    monkeypatch.setattr(pretrain, "SHARD", 1)
    example = lambda _, index: dict.fromkeys(pretrain.COLUMNS, index)  # noqa: E731
    monkeypatch.setattr(dataset, "example", example)
    pretrain.render(tmp_path, 0, 1)
    pretrain.cached(tmp_path / "latents.npz", lambda: np.arange(9))
    for path in tmp_path.iterdir():
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    pool = concurrent.futures.ThreadPoolExecutor(1)
    assert pretrain.render(tmp_path, 0, 1)["age"].tolist() == [0]
    found = pretrain.cached(tmp_path / "latents.npz", lambda: np.arange(8))
    assert found.tolist() == list(range(8))


class Stopped(Exception):
    """In place of the signal that ends a process."""


def test_a_stage_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(supervised, "SAVE_EVERY_SECONDS", 0.0)

    def stops(step):
        if step == 9:
            raise Stopped
        return rows(step)

    with pytest.raises(Stopped):
        fit(tmp_path / "broken", 12, stops)
    seen = []
    again = fit(
        tmp_path / "broken", 12, lambda step: (seen.append(step), rows(step))[1]
    )
    unbroken = fit(tmp_path / "unbroken", 12, rows)
    np.testing.assert_array_equal(again["kernel"], unbroken["kernel"])
    assert seen and seen[0] >= 8  # not from the beginning


def test_a_finished_stage_is_not_run_again(tmp_path):
    first = fit(tmp_path, 5, rows)
    again = fit(tmp_path, 5, lambda step: pytest.fail("one more step"))
    np.testing.assert_array_equal(first["kernel"], again["kernel"])


def test_the_loop_learns(tmp_path):
    found = fit(tmp_path, 400, rows)
    np.testing.assert_allclose(found["kernel"], [1.0, -2.0, 3.0], atol=0.05)


def test_the_learning_rate_warms_up_stays_and_falls():
    rate = partial(supervised.learning_rate, peak=2.0, num_steps=1_000)
    assert float(rate(0)) == pytest.approx(2.0 / 100)
    assert float(rate(99)) == pytest.approx(2.0)
    assert float(rate(600)) == pytest.approx(2.0)
    assert float(rate(800)) == pytest.approx(1.0)  # half of the last 40 %
    assert float(rate(1_000)) == 0.0


def test_the_shipped_classifiers_are_those_of_the_stages_and_small():
    made = {attribute.name: stage for stage, attribute in pretrain.CLASSIFIERS.items()}
    for name, folder in sources.CLASSIFIERS.items():
        attribute = classes.attribute(name)
        assert folder.name == made[name]
        config = pretrain_classifier.config(attribute.classes)
        assert weights.read_config(folder) == config
        found = classifier.load(folder, attributes=(attribute,)).classes
        np.testing.assert_array_equal(found, np.eye(len(attribute.classes)))
    files = [path for path in sources.WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 30e6


def test_the_shipped_flow_model_is_that_of_the_stage_and_small():
    model = stable_diffusion.load(sources.SHIPPED["model"]["embedded_flow"])
    configs = pretrain_flow.configs(len(model.tokenizers["text_encoder"]))
    assert model.configs == {**configs, "scheduler": pretrain_flow.SCHEDULER}
    assert sum(x.size for x in jax.tree.leaves(model.params)) < 8e6
    other = stable_diffusion.load(sources.SHIPPED["model"]["embedded"])
    jax.tree.map(
        np.testing.assert_array_equal, model.params["vae"], other.params["vae"]
    )


def test_the_flow_learns_the_velocity():
    configs = pretrain_flow.configs(100)
    configs["transformer"] = configs["transformer"] | {"num_layers": 1}
    nets = networks.of_configs(configs, jnp.float32)
    params = pretrain_flow.initial(nets, 0)
    params["transformer"]["proj_out"]["kernel"] *= 0.0
    latents, ids = jnp.full((4, 16, 16, 8), 3.0), jnp.zeros((4, 16), jnp.int32)
    # An output of 0 misses noise - 3 by 1 + 9 in the mean; 4 sigma of 8,192 draws.
    loss = jax.jit(partial(pretrain_flow.loss, nets))
    value = float(loss(params, (latents, ids), jax.random.key(0)))
    assert value == pytest.approx(10.0, abs=4 * 6.2 / 90)
    # Where the output is the same for all, the best one is the mean velocity, -3.
    params["transformer"]["proj_out"]["bias"] -= 3.0
    value = float(loss(params, (latents, ids), jax.random.key(0)))
    assert value == pytest.approx(1.0, abs=4 * 1.42 / 90)


@pytest.fixture(scope="module")
def faces():
    return np.stack([dataset.example(3, index)["image"] for index in range(8)])


@pytest.mark.long
def test_normalised_latents_decode_to_the_same_images(faces):
    network = vae.AutoencoderKL(vae.Config.from_dict(pretrain_vae.CONFIG))
    pixels = pretrain_vae.scale(faces)
    before = jax.jit(network.init)(jax.random.key(0), pixels[:1])["params"]
    after = pretrain_vae.normalise(before, faces)

    @jax.jit
    def both_ways(params):
        coded = network.apply({"params": params}, pixels, method="encode")
        image = network.apply({"params": params}, coded[0], method="decode")
        return *coded, image

    (mean, log_var, image), (units, log_units, again) = map(both_ways, (before, after))
    np.testing.assert_allclose(units.mean((0, 1, 2)), 0.0, atol=1e-4)
    np.testing.assert_allclose(units.std((0, 1, 2)), 1.0, atol=1e-4)
    np.testing.assert_allclose(again, image, atol=1e-4)
    scale = np.asarray(mean).std((0, 1, 2))
    np.testing.assert_allclose(log_units, log_var - 2 * np.log(scale), atol=1e-4)


@pytest.mark.long
def test_an_image_is_augmented_but_not_its_meaning(faces):
    pixels = pretrain_vae.scale(faces)
    seen = augmentation.augment(jax.random.key(0), pixels)
    assert seen.shape == pixels.shape and np.isfinite(seen).all()
    assert float(jnp.abs(seen - pixels).mean()) > 0.05
    empty = augmentation.faceless(jax.random.key(0), pixels)
    np.testing.assert_allclose(  # the same colours, no face
        empty.mean((1, 2)), pixels.mean((1, 2)), atol=0.05
    )
    targets = jnp.eye(2)[jnp.arange(8) % 2]
    images, smoothed = augmentation.augment_batch(jax.random.key(0), pixels, targets)
    assert images.shape == pixels.shape
    np.testing.assert_allclose(smoothed, 0.98 * targets + 0.01)  # 2 % over 2 classes
