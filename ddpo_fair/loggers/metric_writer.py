"""Where a run's curves and pictures go beside its own files: TensorBoard, W&B."""

from typing import Protocol

import numpy as np


class Board(Protocol):
    """What `metrics.Journal` asks of each place; steps are epochs."""

    def scalar(self, name: str, value: float, step: int) -> None:
        """Adds a point to a curve."""

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """Adds a picture, uint8 [H, W, 3]."""

    def flush(self) -> None:
        """Hands over what was added."""

    def forget(self, first_step: int) -> None:
        """Leaves out what came from `first_step` on: it will come again."""

    def close(self) -> None:
        """Lets the place go."""
