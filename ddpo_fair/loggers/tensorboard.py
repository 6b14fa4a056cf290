"""TensorBoard's file, written at once: a disk that is full is noticed here and now.

tensorboardX's SummaryWriter has a thread; when the disk fills, the thread dies and the
eleventh number after that waits for it for ever. So its file is written here.
"""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

# tensorboardX would import torch where that is installed: seconds, for nothing here.
_hidden = sys.modules.setdefault("torch", None) is None
try:
    from tensorboardX import event_file_writer, summary
    from tensorboardX.proto import event_pb2
finally:
    if _hidden:
        del sys.modules["torch"]


@dataclasses.dataclass(frozen=True)
class Writer:
    """An open file of events, of curves and images uint8 [H, W, 3]."""

    file: event_file_writer.EventsWriter

    def add(self, step: int, values: dict[str, float | np.ndarray]) -> None:
        """Adds numbers and images, on the disk when it returns; or an OSError."""
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                content = summary.image(name, value, dataformats="HWC")
            else:
                content = summary.scalar(name, value)
            self._write(step, summary=content)
        self.file.flush()

    def forget(self, first_step: int) -> None:
        """Has TensorBoard leave out what came from `first_step` on."""
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(first_step, session_log=start)
        self.file.flush()

    def close(self) -> None:
        """Lets the file go."""
        self.file.close()

    def _write(self, step: int, **content: Any) -> None:
        event = event_pb2.Event(step=step, wall_time=time.time(), **content)
        self.file.write_event(event)


def open_writer(folder: Path, first_step: int) -> Writer:
    """A new file in the folder; TensorBoard forgets what came from `first_step` on."""
    folder.mkdir(exist_ok=True)
    # Files are read in the order of their names, which have the time: it may go back.
    numbers = [int(path.name[7:11]) for path in folder.glob("events_[0-9]*")]
    prefix = str(folder / f"events_{max(numbers, default=0) + 1:04d}")
    writer = Writer(event_file_writer.EventsWriter(prefix))
    writer.forget(first_step)
    return writer
