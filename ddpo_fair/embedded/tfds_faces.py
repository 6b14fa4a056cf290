"""The faces as a TensorFlow Datasets builder; TensorFlow itself is not needed.

    builder = tfds_faces.StereotypedFaces(data_dir="...", file_format="array_record")
    builder.download_and_prepare()
    source = builder.as_data_source(split="train")  # source[0]["image"], ...

Without TensorFlow the formats `array_record` (Linux) and `parquet` can be written and
read, `tfrecord` and `riegeli` cannot (tensorflow-datasets 4.9.10).
"""

import dataclasses
import io
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from ddpo_fair.embedded import dataset


@dataclasses.dataclass
class Sizes(tfds.core.BuilderConfig):
    """How many examples to render; the indices are those of `dataset.example`."""

    num_train: int = dataset.NUM_TRAIN
    num_test: int = dataset.NUM_TEST


class StereotypedFaces(tfds.core.GeneratorBasedBuilder):
    """Rendered faces with captions whose occupations are skewed by gender."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012, as in TFDS
    BUILDER_CONFIGS = [Sizes(name="full")]  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(64, 64, 3)),
            "caption": tfds.features.Text(),
            "kind": tfds.features.Text(),
            "occupation": tfds.features.Text(),
            "view": tfds.features.Text(),
            "male": np.bool_,
            "masculinity": np.float32,
            "age": np.float32,
            "skin_tone": np.float32,
            "ancestry": tfds.features.Tensor(shape=(3,), dtype=np.float32),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(features),
            license="Apache-2.0; geometry derived from MakeHuman assets, CC0",
        )

    def _split_generators(self, manager: tfds.download.DownloadManager) -> dict:
        del manager  # nothing is downloaded
        test = range(
            dataset.FIRST_TEST, dataset.FIRST_TEST + self.builder_config.num_test
        )
        return {
            "train": self._generate_examples(range(self.builder_config.num_train)),
            "test": self._generate_examples(test),
        }

    def _generate_examples(self, indices: range) -> Iterator[tuple[int, dict]]:
        for index in indices:
            example = dataset.example(0, index)
            encoded = io.BytesIO()  # an array would be encoded by TensorFlow
            Image.fromarray(example["image"]).save(encoded, "PNG")
            encoded.seek(0)
            yield index, {**example, "image": encoded}
