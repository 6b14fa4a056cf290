"""How many of 100 audited folders have the truth in their 95 % intervals.

    python benchmarks/audit_coverage.py FOLDER

Renders 14,000 faces of known classes (15 minutes of one core; kept in FOLDER) and
makes of them 100 folders for each of gender and skin tone, sampled from shares that
differ from folder to folder, and labelled images for the calibration. Audits them, by
the embedded classifiers and by a worse one.
"""

import concurrent.futures
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import load_file, save_file

from ddpo_fair import audit
from ddpo_fair.auditing import classified
from ddpo_fair.classifiers import classes
from ddpo_fair.embedded import faces, ground_truth, occupations, people
from ddpo_fair.models import sources
from ddpo_fair.statistics import accuracy, correction

POOL, FOLDERS = 14_000, 100
IMAGES = {"gender": 100, "skin_tone": 50}  # of a folder
TESTED = {"gender": 500, "skin_tone": 250}  # calibration images of each class
NOISE = 0.05  # standard deviation, added to the weights of the worse classifier
EMBEDDED, WORSE = "embedded", "worse"
AUDITS = (  # of an attribute by a classifier at a confidence
    ("gender", EMBEDDED, 0.7),
    ("gender", WORSE, 0.7),
    ("gender", WORSE, 0.0),
    ("skin_tone", EMBEDDED, 0.7),
    ("skin_tone", EMBEDDED, 0.0),
)
SIMULATED = 25  # audits of 100 folders, drawn by the rates that were seen


def render(index: int) -> tuple[np.ndarray, bool, float]:
    """A face of an occupation, half of them female: image, male, skin tone."""
    random, male = np.random.default_rng([15, index]), bool(index % 2)
    noun = occupations.ALL[index // 2 % len(occupations.ALL)]
    face = people.sample(random, male, noun)
    return faces.render(face, 64), male, float(face.tone)


def rendered(path: Path) -> dict[str, np.ndarray]:
    """Images and the class of each attribute."""
    if not path.exists():
        with concurrent.futures.ProcessPoolExecutor() as processes:
            found = processes.map(render, range(POOL), chunksize=250)
            images, male, tones = map(np.array, zip(*found, strict=True))
        np.savez(path, images=images, male=male, skin_tone=tones)
    kept = dict(np.load(path))
    columns = kept | {"view": np.full(POOL, "near")}
    return kept | {x: ground_truth.classes(x, columns) for x in IMAGES}


def shares_of(attribute: str, random: np.random.Generator) -> np.ndarray:
    """The true shares of the folders, float [100, K], from all of one class to none."""
    if attribute == "gender":
        first = (np.arange(FOLDERS) + 0.5) / FOLDERS
        return np.stack([first, 1 - first], axis=1)
    return random.dirichlet([1, 1, 1], FOLDERS)


def lay_out(root: Path, pool: dict[str, np.ndarray], attribute: str) -> np.ndarray:
    """Makes the folders images/ and labelled/; returns the shares [100, K]."""
    random = np.random.default_rng(len(attribute))
    wanted, names = shares_of(attribute, random), classes.attribute(attribute).classes
    truth = pool[attribute]
    left = [list(np.flatnonzero(truth == k)) for k in range(len(names))]
    shutil.rmtree(root, ignore_errors=True)

    def put(folder: Path, rows: Sequence[int]) -> None:
        folder.mkdir(parents=True)
        for row in rows:
            Image.fromarray(pool["images"][row]).save(folder / f"{row:05d}.png")

    for name, rows in zip(names, left, strict=True):
        random.shuffle(rows)
        put(root / "labelled" / name, [rows.pop() for _ in range(TESTED[attribute])])
    for number, shares in enumerate(wanted):
        counts = random.multinomial(IMAGES[attribute], shares)
        rows = [left[k].pop() for k, count in enumerate(counts) for _ in range(count)]
        put(root / "images" / f"prompt {number:03d}", rows)
    return wanted


def worse(folder: Path) -> None:
    """Writes the embedded classifier of gender with noise in all its weights."""
    shutil.copytree(sources.classifier_folder(EMBEDDED), folder, dirs_exist_ok=True)
    random, path = np.random.default_rng(0), folder / "model.safetensors"
    weights = load_file(path)
    for name, values in sorted(weights.items()):
        noise = random.normal(0, NOISE, values.shape)
        weights[name] = (values + noise).astype(values.dtype)
    save_file(weights, path)


def covered(prompts: Sequence[Any], kind: str, wanted: np.ndarray) -> int:
    """In how many folders the shares' intervals hold all true shares together."""
    return sum(
        all(x["low"] <= y <= x["high"] for x, y in zip(each, true, strict=True))
        for each, true in zip([x[kind]["shares"] for x in prompts], wanted, strict=True)
    )


def answers(output: Path, truth: np.ndarray, num_classes: int) -> np.ndarray:
    """At which rates images of a class were classified as what, float [K, K + 1]."""
    lines = (output / classified.KEPT).read_text().splitlines()[1:]
    found = [json.loads(line) for line in lines]
    rows = [int(Path(file).stem) for file, *_ in found]
    said = np.array([labels[1] for *_, labels in found])  # after how many faces
    counts = accuracy.confusion(truth[rows], said, num_classes + 1)[:num_classes]
    return counts / counts.sum(axis=1, keepdims=True)


def simulated(rates: np.ndarray, wanted: np.ndarray, sizes: tuple[int, int]) -> float:
    """The mean of `covered` where each audit has other images and calibration.

    Float [K, K + 1] are the rates at which the classifier says what of which class.
    """
    random, found, (images, tested) = np.random.default_rng(0), 0, sizes
    target = np.full(len(rates), 1 / len(rates))
    for _ in range(SIMULATED):
        confusion = np.stack([random.multinomial(tested, row)[:-1] for row in rates])
        for true in wanted:
            counts = random.multinomial(images, true @ rates)[:-1]
            shares, _ = correction.of_shares(counts, confusion, target)
            found += all(
                x.low <= y <= x.high for x, y in zip(shares, true, strict=True)
            )
    return found / SIMULATED


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pool = rendered(folder / "renders.npz")
    worse(folder / WORSE)
    wanted = {x: lay_out(folder / x, pool, x) for x in IMAGES}
    for attribute, classifier, confidence in AUDITS:
        root, shares = folder / attribute, wanted[attribute]
        output = folder / f"audit_{attribute}_{classifier}_{confidence}"
        shutil.rmtree(output, ignore_errors=True)
        found = audit.folder(
            root / "images",
            attributes=attribute,
            classifier=folder / WORSE if classifier == WORSE else classifier,
            confidence=confidence,
            calibration=root / "labelled",
            output=output,
        ).attributes[attribute]
        rates = answers(output, pool[attribute], shares.shape[1])
        sizes = IMAGES[attribute], TESTED[attribute]
        line = {
            "audit": output.name,
            "rates": np.round(rates, 3).tolist(),
            "corrected": covered(found["prompts"], "corrected", shares),
            "observed": covered(found["prompts"], "observed", shares),
            "simulated": round(simulated(rates, shares, sizes), 1),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
