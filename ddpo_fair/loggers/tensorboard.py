"""TensorBoard's file, written at once: a disk that is full is noticed here and now.

tensorboardX's own writer has a thread; when the disk fills, the thread dies and the
eleventh number after that waits for it for ever.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2


@dataclasses.dataclass(frozen=True)
class Writer:
    """An open file of events."""

    file: event_file_writer.EventsWriter

    def scalar(self, name: str, value: float, step: int) -> None:
        """Adds a point to a curve."""
        self._add(step, summary=summary.scalar(name, value))

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """Adds an image, uint8 [H, W, 3]."""
        self._add(step, summary=summary.image(name, image, dataformats="HWC"))

    def flush(self) -> None:
        """Returns when everything is on the disk.

        Raises:
            OSError: if the disk is full, or the like.
        """
        self.file.flush()

    def forget(self, first_step: int) -> None:
        """Has TensorBoard leave out what came from `first_step` on."""
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(first_step, session_log=start)
        self.flush()

    def close(self) -> None:
        """Lets the file go; what was not flushed may be lost."""
        self.file.close()

    def _add(self, step: int, **content: Any) -> None:
        event = event_pb2.Event(step=step, wall_time=time.time(), **content)
        self.file.write_event(event)


def open_writer(folder: Path, first_step: int) -> Writer:
    """A new file in the folder; TensorBoard forgets what came from `first_step` on."""
    folder.mkdir(exist_ok=True)
    writer = Writer(event_file_writer.EventsWriter(str(folder / "events")))
    writer.forget(first_step)
    return writer
