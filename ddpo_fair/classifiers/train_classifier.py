"""The command that trains an image classifier on labelled images.

    python -m ddpo_fair.classifiers.train_classifier --data=celeb_a --label=Male \\
        --start=google/vit-base-patch16-224 --output=my_classifier
    python -m ddpo_fair.train --config=... \\
        --config.attributes.gender.classifier=my_classifier

Takes a data set of TensorFlow Datasets or a folder of images, begins with a given
ViT or from scratch, and writes a folder that an attribute's classifier may be, with
its test in evaluation.json and evaluation.png. The same command goes on where it was
stopped.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from ddpo_fair import command_line, files, process
from ddpo_fair.classifiers import data_flags, labelled_images
from ddpo_fair.errors import UserError, shown

# Of Muon, five times AdamW's: a network of random weights, or one that knows already.
FROM_SCRATCH, FINE_TUNING = 4e-3, 3e-4
LARGEST = 2**31 - 1


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return process.run(
        "ddpo_fair.classifiers.train_classifier",
        lambda: train(_options(arguments)),
        "the same command continues",
    )


def train(options: flags.FlagValues) -> None:
    """Trains, writes the folder, tests it; a UserError for what the user can fix."""
    # Seconds of imports, which --help and a wrong flag do not wait for.
    from ddpo_fair import parallel
    from ddpo_fair.classifiers import classifier_training
    from ddpo_fair.models import sources

    output = files.given("--output", options.output)
    for noisy in ("absl", "orbax"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    parallel.start(2)
    devices = parallel.num_devices()
    if options.batch % devices:
        raise UserError(
            f"--batch={options.batch} must be a multiple of the {devices} devices."
        )
    data = data_flags.open_data(options)
    size = None if options.start else options.image_size
    attribute = data.attribute
    folder = sources.classifier_folder(  # from scratch, the architecture alone
        options.start or "embedded",
        attribute=attribute.name if options.start else "gender",
    )
    start = classifier_training.begin(folder, data.names, options.seed, size, attribute)
    training, tests = _splits(options, data, start.classifier.preprocessing)
    rows, kept = classifier_training.hold_out(
        training.classes, options.holdout, options.seed
    )
    given = options.flag_values_dict() | {"images": len(training.classes)}
    del given["output"], given["data_dir"]
    classifier_training.bind(output, given)
    print(_opening(start, training, rows, kept, tests))
    tested = None
    if tests is None:
        kept, tested = kept[::2], kept[1::2]
    rate = options.learning_rate or (FINE_TUNING if options.start else FROM_SCRATCH)
    params = classifier_training.train(
        start,
        training,
        rows,
        output / classifier_training.WORK,
        num_steps=options.steps,
        batch_size=options.batch,
        learning_rate=rate,
        seed=options.seed,
    )
    params = classifier_training.calibrate(start, params, training, kept)
    classifier_training.save(output, start, params)
    _test(options, output, tests or training, tested)


def _opening(start: Any, split: Any, rows: Any, kept: Any, tests: Any) -> str:
    """What is trained on what; without `tests` the test takes half of what is kept."""
    counts = ", ".join(
        f"{(split.classes[rows] == k).sum():,} {name}"
        for k, name in enumerate(split.data.names)
    )
    also = f". Tests on the split {tests.name}" if tests else " and the test"
    return (
        f"{start.note}. Trains on {counts} of the split {split.name} (of"
        f" {', '.join(split.data.splits)}); {len(kept):,} held out for the"
        f" temperature{also}. The same command continues."
    )


def _splits(options: flags.FlagValues, data: Any, settings: Any) -> tuple[Any, Any]:
    """Images to train on (a UserError if a class is missing); to test with, or None."""
    name = options.split or data_flags.training_split(data)
    test = options.test_split or data_flags.test_split(data, "test_split", name)
    size, method = settings.size, settings.method
    training, tests = (
        labelled_images.read(data, x, size, method) if x else None for x in (name, test)
    )
    meanings = training.truth
    missing = [x for k, x in enumerate(data.attribute.classes) if k not in meanings]
    if missing:
        raise UserError(
            f"--data={shown(options.data)}: {name} has {len(meanings):,} images, but"
            f" none that is {' and none that is '.join(missing)}: a classifier learns"
            " from all; choose another --split or --label."
        )
    return training, tests


def _test(options: flags.FlagValues, output: Path, split: Any, rows: Any) -> None:
    """Tests the written folder, as config.classifier reads it, on rows; None: all."""
    from ddpo_fair.classifiers import classifier
    from ddpo_fair.evaluation import classifier_evaluation

    source = {"classifier": str(output), "data": options.data, "split": split.name}
    sentence, _ = classifier_evaluation.test(
        classifier.load(output, attributes=(split.data.attribute,)),
        split,
        np.arange(len(split.classes)) if rows is None else rows,
        options.confidence,
        output / "evaluation",
        source,
    )
    print(sentence)
    print(f"Wrote {output}; train with --config.attributes.gender.classifier={output}.")


def _options(arguments: Sequence[str]) -> flags.FlagValues:
    values = flags.FlagValues()
    texts, whole, number, *_ = command_line.definers(values)
    data_flags.define(texts)
    texts("output", None, "Folder of the classifier, new")
    texts(
        "start",
        None,
        "ViT to begin with: embedded, a folder, or owner/name on the Hugging Face hub;"
        " a small one of random weights if not given",
    )
    whole("image_size", 64, "Pixels, from scratch", 16, 1024)
    texts("split", None, "Of the data; train if there is one")
    texts("test_split", None, "Test or validation, or else a part of --holdout")
    number("holdout", 0.1, "Share that is not trained on", 0, 0.999)
    whole("steps", 1500, "Updates", 1, 10**7)
    whole("batch", 64, "Images of an update", 2, 10**5)
    rates = f"{FROM_SCRATCH} from scratch, {FINE_TUNING} with --start"
    number("learning_rate", None, rates, 1e-12, 10)
    whole("seed", 0, "Of everything random", 0, LARGEST)
    number("confidence", 0.7, "That an answer needs in the test", 0, 0.999)
    return command_line.options(values, arguments, __doc__, "data", "output")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
