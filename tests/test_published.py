"""Published models by their config.json: which load, which are refused, and why."""

import pathlib

import jax
import jax.numpy as jnp
import official_configs
import pytest

from ddpo_fair import config as configuration
from ddpo_fair.auditing import drawn_images
from ddpo_fair.diffusion import networks, stable_diffusion
from ddpo_fair.errors import UserError
from ddpo_fair.models import published, sources

TABLE = pathlib.Path(__file__).parents[1] / "docs" / "models.md"


def test_they_load_as_the_table_says():
    own = stable_diffusion.read_configs(sources.EMBEDDED["model"])
    assert drawn_images.variant_of(own) == configuration.EMBEDDED  # of exports too
    table = TABLE.read_text()
    rows = table.count("\n| `")
    assert rows == len(official_configs.MODELS) + len(official_configs.REFUSED)
    for name, (configs, millions) in official_configs.MODELS.items():
        variant = drawn_images.variant_of(configs)
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
    for name, (configs, millions) in official_configs.MODELS.items():
        made = networks.of_configs(configs, jnp.float32)
        part = networks.denoising_part(made)
        shapes = networks.templates(made)[part]
        count = sum(x.size for x in jax.tree.leaves(shapes))
        assert round(count / 1e6) == pytest.approx(millions, abs=1), name
