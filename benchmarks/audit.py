"""How fast an audit reads files, beside decoding and classifying them alone.

    python benchmarks/audit.py [NUMBER]

Makes so many JPEGs of 512 x 512 in a temporary folder, 2,000 if not given; prints
images a second of both, in the same process, and the growth of memory.
"""

import concurrent.futures
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from ddpo_fair import audit, parallel
from ddpo_fair.classifiers import classifier
from ddpo_fair.models import sources

SIDE, BATCH, READERS = 512, 32, 4


def make(folder: Path, number: int) -> list[Path]:
    """Soft images with noise, some 100 kB each."""
    random, paths = np.random.default_rng(0), []
    for index in range(number):
        soft = Image.fromarray(random.integers(0, 255, (24, 24, 3), dtype=np.uint8))
        noise = random.integers(-12, 12, (SIDE, SIDE, 1), dtype=np.int16)
        pixels = np.asarray(soft.resize((SIDE, SIDE)), np.int16) + noise
        paths.append(folder / f"{index:05d}.jpg")
        image = Image.fromarray(np.uint8(np.clip(pixels, 0, 255)))
        image.save(paths[-1], quality=90)
    return paths


def alone(paths: list[Path]) -> None:
    """Decodes and classifies, and does nothing else."""
    model = classifier.load(sources.classifier_folder("embedded"))
    size, settings = BATCH * parallel.num_devices(), model.preprocessing
    params = parallel.replicate(model.params)

    def read(path: Path) -> np.ndarray:
        with Image.open(path) as image:
            method = Image.Resampling(settings.method)
            return np.asarray(image.convert("RGB").resize(settings.size, method))

    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        parts = [paths[k : k + size] for k in range(0, len(paths), size)]
        waiting = [pool.submit(read, path) for path in parts[0]]
        for following in (*parts[1:], []):
            pixels = np.stack([one.result() for one in waiting])
            waiting = [pool.submit(read, path) for path in following]
            padded = np.resize(pixels, (size, *pixels.shape[1:])) / np.float32(255)
            placed = parallel.split(padded)
            parallel.gather(classifier.classify((model,), (params,), placed))


def megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def main(number: int) -> None:
    parallel.start(2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        paths = make(folder / "images", number)

        def whole(part: list[Path], output: str) -> None:
            images = folder / output / "images"
            images.mkdir(parents=True)
            for path in part:
                (images / path.name).symlink_to(path)
            audit.folder(images, prompt="x", output=folder / output / "audit")

        alone(paths[:200])  # compiles
        whole(paths[:200], "first")
        before = megabytes()
        for said, work in (
            ("decode and classify alone", lambda: alone(paths)),
            ("audit", lambda: whole(paths, "second")),
            ("decode and classify alone", lambda: alone(paths)),
            ("audit", lambda: whole(paths, "third")),
        ):
            started = time.perf_counter()
            work()
            seconds = time.perf_counter() - started
            print(f"{said}: {number / seconds:.0f} images/s, peak {megabytes():.0f} MB")
        print(f"memory after 200 images: {before:.0f} MB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
