"""The head as a surface: MakeHuman's body blended, normalised and posed."""

import functools
import json
import pathlib
import typing
from collections.abc import Iterable

import numpy as np
import safetensors

from ddpo_fair.embedded import attributes, rasterizer

ASSETS = pathlib.Path(__file__).parent / "assets"
BODY, EYES, HAIR, HEADGEAR, TRIM = range(5)  # what a pixel shows
EYE_LINE = 7.356  # height of the pupils in the rest pose, dm
PUPIL_DISTANCE = 0.577  # dm, of the mean young adult
LARGER_EYES = {"eye-scale+": 0.45, "eye-height2+": 0.35}  # to be seen at 64 pixels
RACES = ("african", "asian", "caucasian")  # MakeHuman's names, as Face.ancestry
NECK_SHORTENING = 0.22  # dm; brings the collar into an image of the face


class Surface(typing.NamedTuple):
    """A piece of geometry.

    Attributes:
        positions: float32 [V, 3], dm, before the camera.
        normals: float32 [V, 3].
        rest: float32 [V, 3], where the point lies on the mean face: what colours
            are functions of.
        mask: float32 [V]; the surface exists where its interpolation is positive.
        triangles: int32 [F, 3], counter-clockwise from outside.
        kind: BODY, EYES, HAIR, HEADGEAR or TRIM; [V] where it varies.
    """

    positions: np.ndarray
    normals: np.ndarray
    rest: np.ndarray
    mask: np.ndarray
    triangles: np.ndarray
    kind: int | np.ndarray


class Basis(typing.NamedTuple):
    """The asset, dequantised, float32, and the places of the shapes by name."""

    template: np.ndarray  # [V, 3], to which the shapes are added
    rest: np.ndarray  # [V, 3], the mean young adult
    triangles: np.ndarray  # int32 [F, 3]
    scalp_triangles: np.ndarray  # those that hair may cover
    is_eye: np.ndarray  # bool [V]
    macro: list[str]
    local: list[str]
    shapes: np.ndarray  # [K, V * 3] in dm, macro then local


def smooth(start: float, end: float, values: np.ndarray) -> np.ndarray:
    """The cubic step from 0 at start to 1 at end (start may be the larger)."""
    share = np.clip((values - start) / (end - start), 0, 1)
    return share * share * (3 - 2 * share)


@functools.cache
def basis() -> Basis:
    """The geometry that ships with the package, read once."""
    with safetensors.safe_open(ASSETS / "faces.safetensors", "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    shapes = [
        tensors[kind].astype(np.float32) * tensors[f"{kind}_steps"][:, None, None]
        for kind in ("macro", "local")
    ]
    rest, is_eye = tensors["rest"], tensors["is_eye"].astype(bool)
    _, y, z = rest.T
    scalp = ~is_eye & (y > 6.7) & ((z < 1.05) | (y > 7.6))
    triangles = tensors["triangles"].astype(np.int32)
    return Basis(
        template=tensors["template"],
        rest=rest,
        triangles=triangles,
        scalp_triangles=triangles[scalp[triangles].all(1)],
        is_eye=is_eye,
        macro=json.loads(metadata["macro"]),
        local=json.loads(metadata["local"]),
        shapes=np.concatenate(shapes).reshape(-1, rest.size),
    )


def macro_weights(face: attributes.Face) -> dict[str, float]:
    """Weights of the shapes of ancestry, gender, age, muscle and weight, by name."""
    weights = {}
    thin, heavy = max(0.0, -face.weight), max(0.0, face.weight)
    builds = {"min": thin, "average": 1 - thin - heavy, "max": heavy}
    muscles = {"average": 1 - face.muscle, "max": face.muscle}
    for gender, of_gender in (("male", face.masculinity), ("female", face.femininity)):
        for age, of_age in (("young", 1 - face.age), ("old", face.age)):
            share = of_gender * of_age
            for race, of_race in zip(RACES, face.ancestry, strict=True):
                weights[f"{race}-{gender}-{age}"] = share * of_race
            for build_, of_build in builds.items():
                for muscle, of_muscle in muscles.items():
                    name = f"{gender}-{age}-{muscle}muscle-{build_}weight"
                    weights[name] = share * of_build * of_muscle
    return weights


def local_weights(face: attributes.Face, names: Iterable[str]) -> dict[str, float]:
    """Weights of the shapes of single features; random, by face.shape_seed."""
    rng = np.random.default_rng(face.shape_seed)
    weights = dict.fromkeys(names, 0.0)
    for name in weights:
        if name.endswith("+"):
            weight = rng.normal(0, 0.17)
            weight *= 0.3 if "cleft" in name or "age" in name else 1.0
            weight += LARGER_EYES.get(name, 0.0)
            if "jaw-drop" in name:  # the mouth is painted shut
                weight = 0.0
            used = name if weight > 0 else f"{name[:-1]}-"
            weights[used] = min(abs(weight), 1.0)
        elif name.startswith("head-") and not name.endswith("-"):
            weights[name] = max(0.0, rng.normal(-0.1, 0.2))
    weights["smile"] = 0.9 * face.smile
    weights["squint"] = 0.15 * face.smile
    weights["brow up"] = max(0.0, rng.normal(0.1, 0.25))
    return weights


def build(face: attributes.Face) -> Surface:
    """The head and shoulders of a face: eyes at the rest pose's place and distance."""
    parts = basis()
    by_name = macro_weights(face) | local_weights(face, parts.local)
    weights = np.float32([by_name[name] for name in (*parts.macro, *parts.local)])
    shape = parts.template + (weights @ parts.shapes).reshape(-1, 3)
    x = parts.rest[:, 0]
    left = shape[parts.is_eye & (x > 0)].mean(0)
    right = shape[parts.is_eye & (x < 0)].mean(0)
    zoom = (PUPIL_DISTANCE / (left[0] - right[0])) ** 0.7
    shape = (shape - (left + right) / 2) * zoom + np.array([0, EYE_LINE, 1.18])
    shape[:, 1] += NECK_SHORTENING * smooth(6.35, 5.9, parts.rest[:, 1])
    shape = shape.astype(np.float32)
    return Surface(
        positions=shape,
        normals=rasterizer.normals(shape, parts.triangles),
        rest=parts.rest,
        mask=np.ones(len(shape), np.float32),
        triangles=parts.triangles,
        kind=np.where(parts.is_eye, EYES, BODY),
    )
