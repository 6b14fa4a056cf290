"""How often the audit classifier errs on renders, whose class is known.

It was trained on photographs and errs on drawn faces, more on those labelled female.
`embedded/assets/audit.json` keeps its confusion matrix on held-out renders, with which
`evaluate` corrects its shares; `python -m ddpo_fair.classifiers.audit_on_renders`
measures it anew (extras `audit` and `data`) into a file of your choice.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from scipy import stats

from ddpo_fair import command_line, files, process
from ddpo_fair.classifiers import audit_classifier
from ddpo_fair.embedded import attributes, dataset

NUM_IMAGES = 300


def area_under_curve(of_female: np.ndarray, of_male: np.ndarray) -> float:
    """Probability that a score of the first [N] exceeds one of the second [M]."""
    ordered = stats.mannwhitneyu(of_female, of_male).statistic  # a tie is half a pair
    return float(ordered) / (len(of_female) * len(of_male))


def rates(p_female: np.ndarray, male: np.ndarray) -> dict[str, float]:
    """Confusion matrix and rates, of P(female) [N], NaN without a face; male [N]."""
    found = np.isfinite(p_female)
    of_female, of_male = p_female[found & ~male], p_female[found & male]
    right_female, right_male = int((of_female > 0.5).sum()), int((of_male < 0.5).sum())
    return {
        "num_images": len(male),
        "face_found": float(found.mean()),
        "female_as_female": right_female,
        "female_as_male": len(of_female) - right_female,
        "male_as_male": right_male,
        "male_as_female": len(of_male) - right_male,
        "sensitivity": right_female / len(of_female),
        "specificity": right_male / len(of_male),
        "accuracy": (right_female + right_male) / int(found.sum()),
        "auc": area_under_curve(of_female, of_male),
    }


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""

    def work() -> None:
        values = flags.FlagValues()
        texts, *_ = command_line.definers(values)
        texts("output", "audit.json", "The file to write")
        command_line.options(values, arguments, __doc__)
        measure(files.output("--output", values.output, b'"female_as_male"'))

    return process.run(
        "ddpo_fair.classifiers.audit_on_renders", work, "nothing was written"
    )


def measure(output: Path) -> None:
    """Writes the report on the first held-out images that show a face."""
    examples, index = [], dataset.FIRST_TEST
    while len(examples) < NUM_IMAGES:
        _, _, face = dataset.draw(0, index)
        if face.view == attributes.NEAR:
            examples.append(dataset.example(0, index))
        index += 1
    images = np.stack([example["image"] for example in examples])
    faces = audit_classifier.find_faces(images)
    report = rates(faces.p_female, np.array([example["male"] for example in examples]))
    report |= {"first_index": dataset.FIRST_TEST, "last_index": index - 1}
    output.parent.mkdir(parents=True, exist_ok=True)
    files.replace(output, json.dumps(report, indent=2) + "\n")
    print(output.read_text())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
