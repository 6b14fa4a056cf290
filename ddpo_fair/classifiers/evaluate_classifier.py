"""The command that tests a classifier on images whose classes are known.

    python -m ddpo_fair.classifiers.evaluate_classifier --classifier=embedded \\
        --data=celeb_a --label=Male

Writes accuracies with 95 % intervals, the confusion matrix with and without none and
the calibration, as JSON and as a figure.
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from ddpo_fair import command_line, files, process
from ddpo_fair.classifiers import data_flags, labelled_images

RENDERS = "renders"  # the embedded model's, held out; some without a face
DEFAULT_IMAGES = 1000


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return process.run(
        "ddpo_fair.classifiers.evaluate_classifier",
        lambda: evaluate(_options(arguments)),
        "nothing was written",
    )


def evaluate(options: flags.FlagValues) -> None:
    """Classifies the images, writes and prints how well; a UserError for bad input."""
    # Seconds of imports, which --help and a wrong flag do not wait for.
    from ddpo_fair import parallel
    from ddpo_fair.classifiers import classes, classifier, typology
    from ddpo_fair.evaluation import classifier_evaluation
    from ddpo_fair.models import sources

    stem = files.given("--output", options.output)
    table, sheet = classifier_evaluation.paths(stem)
    files.output("--output", table, classifier_evaluation.MARK)
    files.output("--output", sheet, b"\x89PNG" if table.exists() else b"")
    parallel.start(2)
    attribute = classes.attribute(options.attribute)
    if options.classifier == classes.TYPOLOGY:
        model = settings = typology.Typology((attribute,))
    else:
        name = attribute.name
        folder = sources.classifier_folder(options.classifier, attribute=name)
        model = classifier.load(folder, attributes=(attribute,))
        settings = model.preprocessing
    images, rows, split = _images(options, settings)
    given = {
        name: value
        for name, value in options.flag_values_dict().items()
        if value is not None and name not in ("data_dir", "output")
    }
    source = {"split": split, "flags": given}
    sentence, paths = classifier_evaluation.test(
        model, images, rows, options.confidence, stem, source
    )
    for path in paths:
        print(f"Wrote {path}.")
    print(sentence)


def _images(options: flags.FlagValues, settings: Any):
    """Images, which rows of them int [n], and the split's name."""
    if options.data == RENDERS:
        from ddpo_fair.embedded import renders  # the extra `data` may be missing

        known = renders.held_out(options.images or DEFAULT_IMAGES, options.attribute)
        return known, np.arange(len(known.truth)), "held out"
    data = data_flags.open_data(options)
    name = options.split or data_flags.test_split(data, "split")
    name = name or data_flags.only(data.splits, data, "split", "to test on")
    print(f"Tests on the split {name} of {', '.join(data.splits)}.")
    split = labelled_images.read(data, name, settings.size, settings.method)
    count = min(options.images or len(split.classes), len(split.classes))
    order = np.random.default_rng([options.seed, 3]).permutation(len(split.classes))
    return split, np.sort(order[:count]), name


def _options(arguments: Sequence[str]) -> flags.FlagValues:
    values = flags.FlagValues()
    texts, whole, number, *_ = command_line.definers(values)
    data_flags.define(texts)
    where = "Embedded, typology, a folder, or owner/name on the Hugging Face hub"
    texts("classifier", "embedded", where)
    texts("split", None, "Of the data; test if there is one")
    whole("images", None, "At most; drawn at random", 1, 10**8)
    whole("seed", 0, "Of the draw", 0, 2**31 - 1)
    number("confidence", 0.7, "That an answer needs", 0, 0.999)
    texts("output", "classifier", "Of OUTPUT.json and OUTPUT.png")
    return command_line.options(values, arguments, __doc__, "data")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
