"""The command that tests a classifier on images whose classes are known.

    python -m ddpo_fair.classifiers.evaluate_classifier --classifier=embedded \\
        --data=celeb_a --label=Male

Writes accuracies with 95 % intervals, the confusion matrix with and without none and
the calibration, as JSON and as a figure.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from ddpo_fair import files, flags
from ddpo_fair.classifiers import classes, data_flags

RENDERS = "renders"  # the embedded model's, held out; some without a face
DEFAULT_IMAGES = 1000


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status: 0, 2 for something to fix, or 130."""
    return flags.status(
        "ddpo_fair.classifiers.evaluate_classifier",
        lambda: evaluate(_parser().parse_args(arguments)),
        "nothing was written",
    )


def evaluate(options: argparse.Namespace) -> None:
    """Classifies the images, writes and prints the classifier's accuracy.

    Raises:
        UserError: for what the user can fix.
    """
    # Seconds of imports, which --help and a wrong flag do not wait for.
    from ddpo_fair import parallel
    from ddpo_fair.classifiers import classifier
    from ddpo_fair.evaluation import classifier_evaluation
    from ddpo_fair.models import sources
    from ddpo_fair.statistics import accuracy

    stem = files.given("--output", options.output)
    parallel.use_compilation_cache()
    parallel.divide_cpu(2)
    model = classifier.load(sources.classifier_folder(options.classifier))
    images, rows, truth, split = _images(options, model.preprocessing)
    probabilities = classifier_evaluation.classify(model, images, rows)
    found = accuracy.measure(truth, probabilities, options.confidence)
    left_out = ("data_dir", "output")
    flags = {k: v for k, v in vars(options).items() if v is not None}
    flags = {k: v for k, v in flags.items() if k not in left_out}
    source = {"split": split, "flags": flags}
    for path in classifier_evaluation.write(stem, found, source):
        print(f"Wrote {path}.")
    print(accuracy.sentence(found))


def _images(options: argparse.Namespace, settings: Any):
    """Images, which rows of them int [n], the truth int [n], and the split's name."""
    import numpy as np

    if options.data == RENDERS:
        from ddpo_fair.embedded import renders  # the extra `data` may be missing

        known = renders.held_out(options.images or DEFAULT_IMAGES)
        return known, np.arange(len(known.truth)), known.truth, "held out"
    from ddpo_fair.classifiers import labelled_images

    data = data_flags.open_data(options)
    name = options.split or next(
        (s for s in ("test", "validation") if s in data.splits), data.splits[0]
    )
    split = labelled_images.read(data, name, settings.size, settings.method)
    count = min(options.images or len(split.classes), len(split.classes))
    order = np.random.default_rng([options.seed, 3]).permutation(len(split.classes))
    rows = np.sort(order[:count])
    truth = classes.meanings(data.names)[split.classes[rows]]
    return split, rows, truth, name


def _parser() -> argparse.ArgumentParser:
    parser = flags.Parser(
        prog="python -m ddpo_fair.classifiers.evaluate_classifier",
        description=__doc__.split("\n\n")[2],
        allow_abbrev=False,
    )
    data_flags.add_data(parser)
    add = parser.add_argument
    add(
        "--classifier",
        default="embedded",
        help="embedded, a folder, or owner/name on the Hugging Face hub",
    )
    add("--split", help="of the data; test if there is one")
    add("--images", type=flags.whole_number(1, 10**8), help="at most; drawn at random")
    add("--seed", type=flags.whole_number(0, 2**31 - 1), default=0, help="of the draw")
    add(
        "--confidence",
        type=data_flags.share,
        default=0.7,
        help="that an answer needs (0.7)",
    )
    add("--output", default="classifier", help="of OUTPUT.json and OUTPUT.png")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
