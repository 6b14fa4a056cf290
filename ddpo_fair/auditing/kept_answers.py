"""What classifiers said of image files, kept as they go: a killed audit goes on."""

import contextlib
import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ddpo_fair
from ddpo_fair import files


class KeptAnswers:
    """A file of JSON: a line on what it is true of, then one of each image."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        if path.parent.exists():
            files.hold(path.parent, "--output")  # or answers would get mixed
        self._path = path
        self._first = json.dumps({"version": ddpo_fair.__version__, **settings})
        self._known: dict[tuple, list[int]] = {}
        content = files.content(path) if path.is_file() else b""
        lines = content.decode(errors="replace").split("\n")
        self._begun = lines[0] == self._first
        for line in lines[1:] if self._begun else ():
            # The last may be half a line, and any may be damaged.
            with contextlib.suppress(ValueError, TypeError, RecursionError):
                *row, checksum = json.loads(line)
                if checksum == zlib.crc32(json.dumps(row).encode()):
                    *key, answers = row
                    self._known[tuple(key)] = answers

    def of(self, image: Path) -> list[int] | None:
        """What was said of a file, if it is still the same."""
        return self._known.get(_key(image))

    def add(self, images: Iterable[Path], answers: Iterable[list[int]]) -> None:
        """Keeps what was said of files; a UserError if it cannot be written."""
        pairs = zip(images, answers, strict=True)
        rows = ([*_key(image), said] for image, said in pairs)
        # A line begins with its end, so that half a line spoils no other.
        checked = ([*row, zlib.crc32(json.dumps(row).encode())] for row in rows)
        with files.writing(str(self._path)):
            if not self._begun:
                files.hold(self._path.parent, "--output")
                files.replace(self._path, self._first)
                self._begun = True
            with open(self._path, "a", encoding="ascii") as file:
                file.writelines(f"\n{json.dumps(row)}" for row in checked)


def _key(image: Path) -> tuple[str, int, int]:
    try:
        found = os.stat(image)
    except OSError:  # it is gone
        return str(image), -1, -1
    return str(image), found.st_size, found.st_ctime_ns  # mtime is copied with a file
