"""What the tests against PyTorch share: random weights, folders, distances."""

import numpy as np


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


def relative_error(found, expected):
    """||found - expected|| / ||expected||."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def flatten(params, path=()):
    """Dict of dotted path to array."""
    flat = {}
    for name, value in params.items():
        if isinstance(value, dict):
            flat |= flatten(value, (*path, name))
        else:
            flat[".".join((*path, name))] = value
    return flat


def draw(template, seed=0):
    """Random parameters of a template's shapes, small, no bias 0 and no scale 1."""
    random = np.random.default_rng(seed)

    def draw_leaf(path, shape):
        noise = 0.1 * random.standard_normal(shape, dtype=np.float32)
        return 1 + noise if path[-1] == "scale" else noise

    def walk(tree, path=()):
        return {
            name: walk(value, (*path, name))
            if isinstance(value, dict)
            else draw_leaf((*path, name), value.shape)
            for name, value in tree.items()
        }

    return walk(template)


def randomise_norms(torch, module):
    """Moves scales and biases only: larger steps would make deep networks explode."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()
