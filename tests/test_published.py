"""Published models by their config.json: which load, which are refused, and why."""

import pathlib

import jax
import jax.numpy as jnp
import official_configs
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


@pytest.mark.long
def test_they_have_as_many_parameters_as_published():
    counts = {}
    for name, (configs, millions) in official_configs.MODELS.items():
        made = networks.of_configs(configs, jnp.float32)
        part = networks.denoising_part(made)
        key = repr(configs[part])
        if key not in counts:
            latents = (1, 32, 32, made[part].config.in_channels)
            inputs = latents, jnp.zeros(1, int), (1, *networks.text_shape(made))
            shapes = weights.init_template(made[part], *inputs)
            shapes.pop("pos_embed.pos_embed", None)  # a buffer in PyTorch
            counts[key] = sum(x.size for x in jax.tree.leaves(shapes)) / 1e6
        assert round(counts[key]) == pytest.approx(millions, abs=1), name
