"""Image classifier (transformers' ViTForImageClassification)."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpo_fair import errors
from ddpo_fair.models import layers, options

PLACE = "ViTForImageClassification: config.json"
ONE_LABEL = (None, "single_label_classification")  # of problem_type
ATTENTION = tuple(f"attention.attention.{name}" for name in ("query", "key", "value"))
LAYER = (
    ("layernorm_before", "layernorm_after"),
    (*ATTENTION, "attention.output.dense"),
    ("intermediate.dense", "output.dense"),
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of config.json, under their names there; defaults are transformers'."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    qkv_bias: bool = True
    id2label: tuple[str, ...] = ("LABEL_0", "LABEL_1")  # class i's name

    @classmethod
    def from_dict(cls, json_dict: dict[str, Any]) -> "Config":
        """Config of a parsed config.json; a UserError names what is not supported."""
        options.check(
            PLACE,
            json_dict,
            [
                options.among(json_dict, "model_type", (None, "vit")),
                options.among(json_dict, "architecture", (None,)),  # timm's
                options.among(json_dict, "problem_type", ONE_LABEL),
            ],
            "choose a classifier of transformers (not timm) that is a ViT and gives"
            " each image one label, or train one with"
            " ddpo_fair.classifiers.train_classifier",
        )
        if "id2label" in json_dict:
            labels = json_dict["id2label"]
            names = dict(labels) if isinstance(labels, dict) else {}
            names = {str(index): str(name) for index, name in names.items()}
            numbers = [str(i) for i in range(len(names))]
            sound = len(names) > 0 and set(names) == set(numbers)
            rule = ("id2label", sound, "names of the classes 0, 1, 2, ...")
            options.check(PLACE, json_dict, [rule])
            _check_inverse(json_dict, names)
            json_dict = json_dict | {"id2label": [names[i] for i in numbers]}
        config = options.read(cls, json_dict, PLACE)
        rules = (
            options.among(config, "hidden_act", layers.ACTIVATIONS),
            options.among(config, "num_channels", (3,)),  # red, green, blue
            options.divides(config, "patch_size", "image_size"),
            options.divides(config, "num_attention_heads", "hidden_size"),
        )
        options.check(PLACE, vars(config), rules)
        return config


class Embeddings(nn.Module):
    """Patches and the class token, with their positions: [N, 1 + patches, D]."""

    config: Config
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, pixel_values: jax.Array) -> jax.Array:
        c = self.config
        size, name = c.patch_size, "patch_embeddings.projection"
        conv = layers.Conv(c.hidden_size, self.dtype, size, size, (0, 0), name=name)
        patches = conv(pixel_values)
        N, rows, columns, D = patches.shape
        init = nn.initializers.truncated_normal(0.02)  # transformers' initializer_range
        token = self.param("cls_token", init, (1, 1, D))
        positions = self.param("position_embeddings", init, (1, 1 + rows * columns, D))
        tokens = jnp.broadcast_to(token, (N, 1, D)).astype(self.dtype)
        x = jnp.concatenate([tokens, patches.reshape(N, rows * columns, D)], axis=1)
        return x + positions.astype(self.dtype)


def _check_inverse(json_dict: dict[str, Any], names: dict[str, str]) -> None:
    """Raises a UserError if label2id has another number for a name of id2label."""
    inverse = json_dict.get("label2id")
    for name, number in inverse.items() if isinstance(inverse, dict) else ():
        if name in names.values() and names.get(str(number)) != name:
            known = next(index for index in names if names[index] == name)
            raise errors.UserError(
                f"{PLACE}: id2label says that {errors.shown(name)} is {known}, label2id"
                f" that it is {errors.shown(number)}; correct the wrong one."
            )


class ImageClassifier(nn.Module):
    """Logits float32 [N, K], of class i, `config.id2label[i]`, of normalised images.

    They are [N, image_size, image_size, num_channels].
    """

    config: Config
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, pixel_values: jax.Array) -> jax.Array:
        c = self.config
        expected = (c.image_size, c.image_size, c.num_channels)
        if pixel_values.shape[1:] != expected:
            raise errors.UserError(
                f"ViTForImageClassification: images of {pixel_values.shape[1:]}, but"
                f" the model wants {expected}; resize them."
            )
        x = Embeddings(c, self.dtype, name="vit.embeddings")(pixel_values)
        for i in range(c.num_hidden_layers):
            name = f"vit.encoder.layer.{i}"
            x = layers.EncoderLayer(c, LAYER, self.dtype, c.qkv_bias, name=name)(x)
        x = layers.layer_norm(x, c.layer_norm_eps, "vit.layernorm", self.dtype)
        classifier = layers.dense(len(c.id2label), "classifier", self.dtype)
        return classifier(x[:, 0]).astype(jnp.float32)
