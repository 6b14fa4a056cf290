"""Published models by their config.json: which load, which are refused, and why."""

import dataclasses
import pathlib

import jax.numpy as jnp
import official_configs
import parity
import pytest

from ddpo_fair import config as configuration
from ddpo_fair.diffusion import networks, stable_diffusion
from ddpo_fair.errors import UserError
from ddpo_fair.models import published, sources, weights
from ddpo_fair.training import assembly

TABLE = pathlib.Path(__file__).parents[1] / "docs" / "models.md"


def test_they_load_as_the_table_says():
    for name, folder in sources.SHIPPED["model"].items():  # of exports too
        assert assembly.variant_of(stable_diffusion.read_configs(folder)) == name
    table = TABLE.read_text()
    rows = table.count("\n| `")
    assert rows == len(official_configs.MODELS) + len(official_configs.REFUSED)
    for name, (configs, millions) in official_configs.MODELS.items():
        variant = assembly.variant_of(configs)
        assert variant in configuration.VARIANTS
        assert f"| `{name}` | `:{variant}` | {millions:,} |" in table
        made = networks.of_configs(configs, jnp.float32)
        model = stable_diffusion.Model(pathlib.Path(name), made, {}, configs, {})
        assert model.schedule(4, 0.7, "flow_grpo").std.min() > 0  # can be trained
        if architecture := published.MODELS.get(name):
            ours = networks.of_configs(architecture, jnp.float32)
            configs_of = ({x: y.config for x, y in n.items()} for n in (made, ours))
            assert ours.keys() == made.keys()
            for one, other in zip(*(c.values() for c in configs_of), strict=True):
                assert one == other, name


@pytest.mark.parametrize("name", official_configs.REFUSED)
def test_others_are_refused_with_the_true_reason(name):
    configs, reason = official_configs.REFUSED[name]
    with pytest.raises(UserError, match=reason):
        stable_diffusion.of_configs(pathlib.Path(name), configs, jnp.float32)
    assert f"| `{name}` | no |" in TABLE.read_text()


def test_a_unet_halves_its_latents_to_the_end():
    architecture = published.STABLE_DIFFUSION_1
    odd = architecture | {"unet": architecture["unet"] | {"sample_size": 60}}
    rule = "sample_size=60 must be a multiple of 8 latent"
    with pytest.raises(UserError, match=rule):
        networks.of_configs(odd, jnp.float32)


@pytest.mark.long
def test_they_have_as_many_parameters_as_published():
    """Those that can be planned without a file are counted in test_models."""
    counts, models = {}, official_configs.MODELS
    for name in sorted(models, key=lambda name: name not in published.MODELS):
        configs, millions = models[name]
        made = networks.of_configs(configs, jnp.float32)
        part = networks.denoising_part(made)
        key = dataclasses.replace(made[part].config, sample_size=64)
        if name in published.MODELS:
            counts[key] = millions
        elif key not in counts:
            inputs = networks.inputs(made)[part]
            counts[key] = parity.millions(weights.init_template(made[part], *inputs))
        assert counts[key] == pytest.approx(millions, abs=1), name
