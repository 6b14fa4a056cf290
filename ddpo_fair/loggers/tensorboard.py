"""TensorBoard's file, written at once: a disk that is full is noticed here and now.

tensorboardX's own writer has a thread; when the disk fills, the thread dies and the
eleventh number after that waits for it for ever.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Board:
    """An open file of events."""

    file: Any  # tensorboardX.event_file_writer.EventsWriter

    def scalar(self, name: str, value: float, step: int) -> None:
        """Adds a point to a curve."""
        from tensorboardX import summary

        self._add(step, summary=summary.scalar(name, value))

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """Adds a picture, uint8 [H, W, 3]."""
        from tensorboardX import summary

        self._add(step, summary=summary.image(name, image, dataformats="HWC"))

    def flush(self) -> None:
        """Returns when everything is on the disk.

        Raises:
            OSError: if the disk is full, or the like.
        """
        self.file.flush()

    def forget(self, first_step: int) -> None:
        """Has TensorBoard leave out what came from `first_step` on."""
        from tensorboardX.proto import event_pb2

        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(first_step, session_log=start)
        self.flush()

    def close(self) -> None:
        """Lets the file go; what was not flushed may be lost."""
        self.file.close()

    def _add(self, step: int, **content: Any) -> None:
        from tensorboardX.proto import event_pb2

        event = event_pb2.Event(step=step, wall_time=time.time(), **content)
        self.file.write_event(event)


def open_board(folder: Path, first_step: int) -> Board:
    """A new file in the folder; TensorBoard forgets what came from `first_step` on."""
    # a second; after the settings are known to be sound
    from tensorboardX import event_file_writer

    folder.mkdir(exist_ok=True)
    board = Board(event_file_writer.EventsWriter(str(folder / "events")))
    board.forget(first_step)
    return board
