"""Run folders made by arithmetic, in the layout that training writes."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ENGINEER = "photo of the face of a mechanical engineer"
HOSTILE = '</title><script>alert(1)</script><img src=x onerror="alert(2)"> $\\frac{'


def settings(**changes: Any) -> dict[str, Any]:
    """Settings of config.json, some of them changed."""
    return {
        "seed": 0, "epochs": 12, "model": "embedded", "classifier": "embedded",
        "prompts": [ENGINEER], "reward.name": "balance", "reward.target": [0.5, 0.5],
        "sample.num_steps": 20, "train.objective": "ppo", "train.ratio_tolerance": 1e-3,
        "eval.images": 128, **changes,
    }  # fmt: skip


def line(epoch: int, num_female: int, num_male: int, num_none: int = 4) -> dict:
    """An epoch's line with these counts; the other figures follow from the epoch."""
    return {
        "epoch": epoch, "reward_mean": -0.4 * math.exp(-epoch / 4), "reward_std": 0.3,
        **q_fields("", num_female, num_male), "num_female": num_female,
        "num_male": num_male, "num_none": num_none, "loss": -0.001 / (1 + epoch),
        "kl": 0.2 + 0.01 * epoch, "clip_fraction": 0.1, "trust_region_fraction": 0.0,
        "ratio_deviation": 1e-6 * (1 + epoch % 3), "grad_norm": 1.0 + 0.1 * epoch,
        "advantage_max": 2.0, "images": num_female + num_male + num_none,
        "images_per_second": 4.0, "epoch_seconds": 18.0, "device_memory_gb": 1.5,
    }  # fmt: skip


def evaluation(num_female: int, num_male: int, num_none: int = 4) -> dict[str, Any]:
    """The eval_ fields with these counts."""
    return {
        **q_fields("eval_", num_female, num_male),
        "eval_num_female": num_female,
        "eval_num_male": num_male,
        "eval_none": num_none,
        "eval_p_female_histogram": [num_male, 0, 0, 1, 1, 1, 1, 0, 0, num_female],
        "eval_polarisation": 0.9,
    }


def q_fields(prefix: str, num_female: int, num_male: int) -> dict[str, float | None]:
    """q and a rough interval around it; null without a face."""
    faces = num_female + num_male
    if not faces:
        return {f"{prefix}q": None, f"{prefix}q_low": 0.0, f"{prefix}q_high": 1.0}
    q = num_female / faces
    half = 1.96 * math.sqrt(q * (1 - q) / faces)
    names = (f"{prefix}q", f"{prefix}q_low", f"{prefix}q_high")
    return dict(zip(names, (q, max(q - half, 0), min(q + half, 1)), strict=True))


def balancing(num_epochs: int, last: int = 62) -> list[dict[str, Any]]:
    """Lines of a run whose evaluations go from 15 of 124 as female to `last`."""
    lines = []
    for epoch in range(num_epochs):
        female = round(15 + (last - 15) * epoch / max(num_epochs - 1, 1))
        lines.append(line(epoch, female // 2, 62 - female // 2, 2))
        if epoch % 2 == 0 or epoch == num_epochs - 1:
            lines[-1] |= evaluation(female, 124 - female)
    return lines


def grid(path: Path, epoch: int, side: int = 132) -> None:
    """A grid of flat squares whose colours depend on the epoch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, columns = np.indices((side, side)) // (side // 4)
    pixels = np.stack([60 * rows, 60 * columns, 0 * rows + 12 * epoch], axis=-1)
    Image.fromarray(np.uint8(pixels % 256)).save(path)


def make(
    folder: Path, lines: list[dict[str, Any]], grids: tuple[int, ...] = (), **changes
) -> Path:
    """Writes a run folder and returns it."""
    folder.mkdir(parents=True)
    content = {
        "config": settings(**changes), "images_per_epoch": 64, "version": "0.1.0",
        "commit": "0" * 40, "devices": ["2 x cpu"], "jax": "0.10.2", "python": "3.11.2",
        "command": ["ddpo_fair/train.py", "--config=configs/mech_eng.py"],
        "started": "2026-01-01T00:00:00+0000",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    text = "".join(json.dumps(one) + "\n" for one in lines)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    for epoch in grids:
        grid(folder / "samples" / f"epoch_{epoch:04d}.png", epoch)
    return folder


CLASSES = {
    "age": ("young", "middle-aged", "old"),
    "gender": ("female", "male"),
    "skin_tone": ("light", "medium", "dark"),
}


def of_attributes(prefix: str = "", num_none: int = 4, **counts: tuple[int, ...]):
    """The `attributes` of a line, or of its evaluation with the prefix eval_.

    "gender_x_skin_tone" is a keyword for "gender x skin_tone".
    """
    found = {}
    for key, own in counts.items():
        name = key.replace("_x_", " x ")
        names = itertools.product(*(CLASSES[one] for one in name.split(" x ")))
        cells = map(" ".join, names)
        found[name] = {
            f"{prefix}counts": dict(zip(cells, own, strict=True)),
            f"{prefix}num_none": num_none,
        }
    return {"attributes": found}


def of_several(*names: str, **changes: Any) -> dict[str, Any]:
    """Settings of a run with these attributes, each with equal shares as its target."""
    found = {"attributes.gender.target": [0.5, 0.5]} if "gender" in names else {}
    for name in names:
        size = len(CLASSES[name])
        found[f"attributes.{name}.classes"] = list(CLASSES[name])
        found[f"attributes.{name}.target"] = [1 / size] * size
    return found | changes
