"""Which images are audited, and which prompt each is of.

Prompts are sub-folders' names, a table's column, or one for all. Nothing is decoded.
"""

import collections
import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddpo_fair import files
from ddpo_fair.classifiers import image_folder
from ddpo_fair.errors import UserError, shown

COLUMNS = ("file", "prompt")
FORM = (
    "a table is, in UTF-8, a .csv with the columns file and prompt and commas between,"
    ' or a .jsonl with lines {"file": "a.png", "prompt": "photo of a nurse"}'
)


class ImageList(NamedTuple):
    """Images and their prompts."""

    root: Path
    images: list[Path]  # [N]
    of_image: np.ndarray  # int [N], the number of each one's prompt
    prompts: list[str]  # distinct texts, [P]
    skipped: collections.Counter[str]  # how many files were left out, by the reason
    missing: list[str]  # files that a table names and that there are not


def of_folder(
    root: Path,
    prompt: str | None,
    table: str | None,
    unnamed: str = "images that the table does not name",
) -> ImageList:
    """The images below a folder, of one --prompt, or of those in a table, --prompts.

    `unnamed` says what images are that the table leaves out. A UserError if there are
    none, or their prompts are not known.
    """
    name = f"--images={shown(str(root))}"
    if prompt is not None and (table is not None or not prompt.strip()):
        raise UserError(
            f"--prompt={shown(prompt)} is empty, or stands beside --prompts; say once"
            " what the images were asked for."
        )
    if not root.is_dir():
        raise UserError(f"{name} is no folder; give one that holds images.")
    skipped: collections.Counter[str] = collections.Counter()
    found = list(_walk(root, skipped))
    missing: list[str] = []
    if table is not None:
        places: dict[Path, str] = {}
        for file, text in _read(table, COLUMNS, FORM):
            if places.setdefault(root / os.path.normpath(file), text) != text:
                raise UserError(
                    f"--prompts={shown(table)}: {shown(file)} has another prompt, too;"
                    " keep one."
                )
        pairs = [(x, text) for x, text in places.items() if os.path.isfile(x)]
        missing = [os.path.relpath(x, root) for x in places.keys() - dict(pairs).keys()]
        left = [path for path in found if path not in places]
        skipped.update([unnamed] * len(left))
        if not pairs:
            raise UserError(
                f"--prompts={shown(table)}: none of its files is there, the first is"
                f" {shown(str(next(iter(places))))}; a file's name begins below"
                f" {name}."
            )
    elif prompt is not None:
        pairs = [(path, prompt) for path in found]
    else:
        inside = [(path, path.relative_to(root).parts) for path in found]
        pairs = [(path, parts[0]) for path, parts in inside if len(parts) > 1]
        skipped.update(["images outside a prompt's folder"] * (len(found) - len(pairs)))
    if not pairs:
        said = ", ".join(f"{count:,} {kind}" for kind, count in skipped.most_common(5))
        raise UserError(
            f"{name} holds no images ({', '.join(image_folder.SUFFIXES)}) of a known"
            " prompt. Name one for all with --prompt, or give a sub-folder for each"
            f" prompt, or --prompts; {FORM}, with files below the folder."
            + (f" Skipped: {said}." if said else "")
        )
    prompts = list(dict.fromkeys(text for _, text in pairs))
    numbers = {text: number for number, text in enumerate(prompts)}
    of_image = np.array([numbers[text] for _, text in pairs])
    images = [path for path, _ in pairs]
    return ImageList(root, images, of_image, prompts, skipped, sorted(missing))


def _walk(root: Path, skipped: collections.Counter[str]) -> Iterator[Path]:
    """The image files below a folder in order; links are followed, but in no circle."""
    seen = set()

    def closed(_: OSError) -> None:
        skipped["folders that cannot be opened"] += 1

    for folder, folders, names in os.walk(root, onerror=closed, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = sorted(x for x in folders if not x.startswith(image_folder.HIDDEN))
        if real in seen:
            folders.clear()
            skipped["links to a folder that is read already"] += 1
            continue
        seen.add(real)
        seen_here = [x for x in sorted(names) if not x.startswith(image_folder.HIDDEN)]
        for path in (Path(folder, x) for x in seen_here):
            if kind := image_folder.other_kind(path):
                skipped[kind] += 1
            else:
                yield path


def read_prompts(text: str) -> list[str]:
    """The distinct prompts of --prompts, in order; a UserError where one is missing."""
    form = "prompts are the lines of a .txt, or the column prompt of a .csv or .jsonl"
    return list(dict.fromkeys(prompt for (prompt,) in _read(text, COLUMNS[1:], form)))


def _read(text: str, columns: Sequence[str], form: str) -> list[tuple[str, ...]]:
    path = files.given("--prompts", text)
    name = f"--prompts={shown(text)}"
    rows: list[tuple[str, ...]] = []
    try:
        content = files.content(path).decode("utf-8-sig")
        for number, row in _rows(path, content, columns):
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is no object")
            values = tuple(row.get(column) for column in columns)
            for column, value in zip(columns, values, strict=True):
                if not isinstance(value, str) or not value.strip():
                    raise ValueError(f"line {number} has no {column}")
            if None in row:  # what no column is for
                raise ValueError(f"line {number} has a comma that no quotes are around")
            rows.append((*values[:-1], values[-1].strip()))
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        raise UserError(f"{name} cannot be read ({error}); {form}.") from None
    if not rows:
        raise UserError(f"{name} has no line; {form}.")
    return rows


def _rows(
    path: Path, content: str, wanted: Sequence[str]
) -> Iterator[tuple[int, object]]:
    if path.suffix.lower() == ".csv":
        reader = csv.DictReader(io.StringIO(content, newline=""), strict=True)
        columns = reader.fieldnames or ()
        if columns and any(columns.count(x) != 1 for x in wanted):
            raise ValueError(f"its columns are {shown(', '.join(columns))}")
        for row in reader:
            yield reader.line_num, row
        return
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        if path.suffix.lower() == ".txt" and wanted == COLUMNS[1:]:
            yield number, {"prompt": line.strip()}
            continue
        try:
            yield number, json.loads(line, object_pairs_hook=files.once)
        except json.JSONDecodeError as error:
            what = f"line {number} is no JSON: {error.msg} at column {error.colno}"
            raise ValueError(what) from None
