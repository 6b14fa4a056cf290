"""What the tests against PyTorch share: random weights, folders, distances."""

import json

import jax
import numpy as np
from flax import traverse_util

from ddpo_fair import exporting
from ddpo_fair.diffusion import sampler
from ddpo_fair.models import weights


def randomise(torch, module, seed=0):
    """Moves every weight of a module, so that no bias is 0 and no scale is 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.05 * noise)
    return module.eval()


def to_torch(torch, images):
    """Torch tensor [N, C, H, W] of images [N, H, W, C]."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def to_numpy(tensor):
    """Images [N, H, W, C] of a torch tensor [N, C, H, W]."""
    return tensor.detach().numpy().transpose(0, 2, 3, 1)


def reopen(cls, folder, params, filename="diffusion_pytorch_model.safetensors"):
    """What PyTorch opens of parameters that we save: all of them, and no others.

    Args:
        cls: of diffusers or transformers.
        folder: with the config.json; the parameters are written beside it.
        params: of our network.
        filename: of the weights.
    """
    ours = folder / "ours"
    weights.save(ours, params, weights.read_config(folder), filename)
    module, report = cls.from_pretrained(ours, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    return module.eval()


def write_index(folder):
    """Writes the model_index.json by which diffusers opens a folder of parts."""
    index = exporting._pipeline({path.name for path in folder.iterdir()})
    scheduler = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def relative_error(found, expected):
    """||found - expected|| / ||expected||."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def millions(params):
    """How many parameters there are, without the buffer of PyTorch's SD 3."""
    sizes = {name: x.size for name, x in flatten(params).items()}
    return round((sum(sizes.values()) - sizes.get("pos_embed.pos_embed", 0)) / 1e6)


def flatten(params):
    """Dict of dotted path to array."""
    return traverse_util.flatten_dict(params, sep=".")


def template(shapes):
    """The template of float32 parameters, of their shapes by "module/leaf"."""
    flat = {x: jax.ShapeDtypeStruct(shape, np.float32) for x, shape in shapes.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def draw(template, seed=0):
    """Random parameters of a template's shapes, small, no bias 0 and no scale 1."""
    random = np.random.default_rng(seed)

    def draw_leaf(path, leaf):
        noise = 0.1 * random.standard_normal(leaf.shape, dtype=np.float32)
        return 1 + noise if path[-1] == "scale" else noise

    return traverse_util.path_aware_map(draw_leaf, template)


def randomise_norms(torch, module):
    """Moves scales and biases only: larger steps would make deep networks explode."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


def run_pipeline(torch, monkeypatch, pipeline, keys, shape, num_steps, **given):
    """diffusers' images, and latents [N, h, w, C] after each step of DDIM.

    Its noises are ours of the keys [N]; the rest is given to the pipeline.
    """
    from diffusers.schedulers import scheduling_ddim  # which may be missing

    first = jax.vmap(sampler.initial_noise, (0, None))(keys, shape)
    draw = jax.vmap(sampler.step_noise, (0, None, None))
    noises = (np.array(draw(keys, step, shape)) for step in range(num_steps))
    monkeypatch.setattr(
        scheduling_ddim, "randn_tensor", lambda *_, **__: to_torch(torch, next(noises))
    )
    latents = []

    def keep(_, step, timestep, now):
        latents.append(to_numpy(now["latents"]))
        return now

    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        latents=to_torch(torch, np.array(first)),
        eta=1.0,
        num_inference_steps=num_steps,
        callback_on_step_end=keep,
        **given,
    )
    return drawn.images, latents
