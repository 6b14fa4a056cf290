"""How often a classifier errs on labelled images: measured, kept, used again.

calibration.json has, of each attribute, int [K, K], `confusion[true, said]` of
recognised images, and how many of each class were not, beside what it is true of: the
classifier's fingerprint, the confidence, whether faces were cropped, the classes.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ddpo_fair import attribute_rules, errors, files
from ddpo_fair.auditing import classified, figures
from ddpo_fair.classifiers import classifier, data_flags, labelled_images
from ddpo_fair.errors import UserError, shown
from ddpo_fair.report import formatting, run_reader
from ddpo_fair.statistics import accuracy, correction
from ddpo_fair.training import description

NAME, VERSION = run_reader.CALIBRATION, 1
# May differ, where the fingerprint may not.
FREE = ("classifier", "source", "confusion", "unrecognised")
MOST = 10**9  # images of a count
Calibrations = dict[str, dict[str, Any]]


def of(
    references: Mapping[str, str],
    config: ConfigDict,
    faces: bool = False,
    models: Sequence[classifier.AnyClassifier] = (),
) -> Calibrations:
    """The calibration of attributes, as calibration.json has it.

    The references, by attribute, are a folder with a folder of each class, a name of
    TensorFlow Datasets, or a calibration.json. Only these are read without the models,
    the config's classifiers, all others with them. A UserError if one cannot be read,
    is of another classifier, or nothing can be corrected with it.
    """
    owners = {one.name: model for model in models for one in model.attributes}
    attributes = attribute_rules.of(config)
    found: Calibrations = {}
    for name, reference in references.items():
        is_kept = reference.lower().endswith(".json")
        if is_kept == bool(models):
            continue
        attribute, one = attributes[name], config.attributes[name]
        field = f"attributes.{name}.classifier"
        own = {
            "classifier": one.classifier,
            "fingerprint": description.identity(config, field)["fingerprint"],
            "confidence": one.confidence_threshold,
            "faces": faces,
            "classes": list(attribute.classes),
            "source": reference,
        }
        try:
            if is_kept:
                known = _kept(files.given("--calibration", reference), name, own)
                own |= {x: known[x] for x in FREE[1:]}
            else:
                measured = _measured(own, owners[name], attribute, reference)
                own["confusion"] = measured[:, :-1].tolist()
                own["unrecognised"] = measured[:, -1].tolist()
            correction.check(np.array(own["confusion"]), attribute.classes)
        except UserError as error:
            text = str(error).partition(" Say what its values")[0]
            text = text.removeprefix(f"--data={shown(reference)}").removeprefix(":")
            form = f", which needs a folder for each of {', '.join(attribute.classes)}"
            form *= not is_kept
            raise UserError(
                f"--calibration={shown(reference)}{form}: {text.strip()}"
            ) from error
        found[name] = own
    return found


def matrices(calibrations: Calibrations) -> dict[str, np.ndarray]:
    """The confusion matrix of each attribute that is calibrated."""
    return {name: np.array(one["confusion"]) for name, one in calibrations.items()}


def notes(calibrations: Calibrations) -> Iterator[str]:
    """A sentence for each attribute whose classes are not recognised equally often."""
    for name, one in calibrations.items():
        none, seen = np.array(one["unrecognised"]), np.sum(one["confusion"], axis=1)
        if np.ptp(shares := none / (none + seen)) > figures.MUCH_NONE:
            pairs = zip(one["classes"], shares, strict=True)
            each = formatting.listed([f"{share:.0%} of {x}" for x, share in pairs])
            text = f"No {formatting.title(name)} was recognised in {each} of the"
            text += " calibration images, so shares of recognised images are not those"
            yield text + " of all. With --confidence=0 every image counts."


def write(folder: Path, calibrations: Calibrations) -> None:
    """Writes calibration.json to a folder, if anything is calibrated; or an OSError.

    Of other attributes it keeps what is there.
    """
    if not calibrations:
        return
    others: Calibrations = {}
    with contextlib.suppress(*description.UNREADABLE):  # none, or not ours
        before = json.loads(files.content(folder / NAME))
        others = dict(before["attributes"]) if before["version"] == VERSION else {}
    content = {"version": VERSION, "attributes": others | calibrations}
    files.replace(folder / NAME, files.json_text(content, indent=1))


def _measured(
    own: Mapping[str, Any],
    model: classifier.AnyClassifier,
    attribute: labelled_images.Attribute,
    reference: str,
) -> np.ndarray:
    """Int [K, K + 1], NONE last, on the split for tests, if any, else on all images."""
    total = np.zeros((len(attribute.classes) + 1,) * 2, np.int64)
    data = labelled_images.open_data(reference, attribute=attribute)
    test = data_flags.test_split(data, "split")
    for part in (test,) if test else data.splits:
        split = labelled_images.read(data, part, *classified.form_of(model))
        images = [split.file(row) for row in range(len(split.truth))]
        alone = classified.Models((model,))
        found = classified.classify(alone, images, own["confidence"], own["faces"])
        if found.unreadable:
            row, why = next(iter(found.unreadable.items()))
            name = images[row] if isinstance(images[row], Path) else f"image {row}"
            raise UserError(f"{name} cannot be read ({why}); remove or replace it.")
        said = found.labels[attribute.name]
        total += accuracy.confusion(split.truth, said, len(total))
    return total[:-1]


def _kept(path: Path, name: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """What a calibration.json has of an attribute; a UserError unless it fits `own`."""
    size = len(own["classes"])
    try:
        content = json.loads(files.content(path), object_pairs_hook=files.once)
        if content["version"] != VERSION:
            raise ValueError(f"its version is {shown(content['version'])}")
        if name not in content["attributes"]:
            raise ValueError(f"it has no {name}")
        kept = dict(content["attributes"][name])
        kept.setdefault("unrecognised", [0] * size)  # once not kept
        counts = np.array([*kept["confusion"], kept["unrecognised"]])
        sound = counts.shape == (size + 1, size) and counts.dtype == int
        if not sound or counts.min() < 0 or counts.max() > MOST:
            raise ValueError(f"its counts of {name} are not {size} x {size} and {size}")
        of_kept = f"{kept['classifier']}", f"{kept['source']}"
    except description.UNREADABLE as error:
        raise UserError(
            f"it is no {NAME} that an audit wrote ({error}); calibrate again with the"
            " labelled images."
        ) from None
    if changes := errors.differences(kept, own, FREE):
        raise UserError(
            f"it is of the classifier {shown(of_kept[0])}, as it was then, and this is"
            f" {shown(own['classifier'])}: {'; '.join(changes)}. Calibrate again with"
            f" the labelled images, {of_kept[1]}, or use what it is of."
        )
    return kept
