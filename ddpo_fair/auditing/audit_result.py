"""What an audit found: what audit.json holds (docs/audit.schema.json), written."""

import dataclasses
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

import ddpo_fair
from ddpo_fair import attribute_rules, files
from ddpo_fair.auditing import audit_page, calibration, figures
from ddpo_fair.auditing.classified import Classified
from ddpo_fair.auditing.image_list import ImageList
from ddpo_fair.errors import UserError, shown
from ddpo_fair.training import description

RESULT, PAGE = "audit.json", "audit.html"
VERSION = 1
MARKS = {RESULT: b'"written_by"', PAGE: b": audit</title>"}  # of those of this command


@dataclasses.dataclass(frozen=True)
class Audit:
    """An audit; its figures are as `figures` has them."""

    version: int
    written_by: dict[str, str]
    source: dict[str, str | None]  # what was audited
    images: int  # that could be read
    faces: dict[str, int] | None  # images without any and with several, if cropped
    prompts: int
    unreadable: list[list[str]]  # files, and why
    missing: list[str]  # files that the table names
    skipped: dict[str, int]  # files left out, by reason
    attributes: dict[str, dict[str, Any]]
    fail_above: float | None
    notes: list[str]

    @property
    def above(self) -> list[str]:
        """A line for each attribute whose mean bias is surely above `fail_above`."""
        return list(figures.above(vars(self)))


def of(
    config: ConfigDict,
    listed: ImageList,
    found: Classified,
    calibrations: calibration.Calibrations,
    fingerprints: Mapping[str, str],
    audits: dict[str, str],
    baseline: dict[str, Any],
    **others: Any,
) -> Audit:
    """What an audit found.

    `fingerprints` are those of the attributes' classifiers, `audits` names the audit
    classifiers that there are, by attribute, `baseline` has the attributes of another
    audit, `others` the fields `source` and `fail_above`. A UserError if the baseline is
    not comparable.
    """
    targets = attribute_rules.targets(config)
    rows, matrices = found.rows, calibration.matrices(calibrations)
    prompts, of_image = listed.prompts, listed.of_image[rows]
    faces = None
    if found.faces is not None:
        seen = found.faces[rows]
        faces = {"none": np.sum(seen == 0), "several": np.sum(seen > 1)}

    def of_attribute(name: str, one: ConfigDict) -> dict[str, Any]:
        wanted = [targets.get(name, {}).get(text, one.target) for text in prompts]
        labels, rest = found.labels[name][rows], (of_image, prompts, wanted)
        audit = None
        own = figures.of_attribute(labels, *rest, matrices.get(name))
        if name in audits:
            audit = figures.of_audit(labels, found.audit[name][rows], *rest)
            audit["classifier"] = audits[name]
        return {
            "classifier": one.classifier,
            "fingerprint": fingerprints[name],
            "confidence": one.confidence_threshold,
            "cropped": faces is not None,
            "calibration": calibrations.get(name, {}).get("source"),
            "classes": one.classes,
            "target": one.target,
            **own,
            "audit": audit,
        }

    content = {
        "version": VERSION,
        "written_by": {
            "version": ddpo_fair.__version__,
            "date": time.strftime("%Y-%m-%d %H:%M %z"),
        },
        "images": len(rows),
        "faces": faces,
        "prompts": len(listed.prompts),
        "unreadable": [
            [os.path.relpath(listed.images[row], listed.root), why]
            for row, why in found.unreadable.items()
        ],
        "missing": listed.missing,
        "skipped": listed.skipped,
        "attributes": {x: of_attribute(x, y) for x, y in config.attributes.items()},
        **others,
    }
    content = files.plain(content)
    for name in content["attributes"].keys() & baseline.keys():
        own = content["attributes"][name]
        try:
            own["baseline"] = figures.compare(own, baseline[name], name)
        except (LookupError, TypeError, AttributeError) as error:
            what = f"of {name} lacks what an audit writes ({error!r}); write it again."
            flag = f"--baseline={shown(content['source']['baseline'])}"
            raise UserError(f"{flag} {what}") from None
    notes = dict.fromkeys([*figures.notes(content), *calibration.notes(calibrations)])
    return Audit(**content, notes=list(notes))


def write(output: Path, audit: Audit, calibrations: calibration.Calibrations) -> None:
    """Writes an audit and its calibrations to a folder; a UserError if it cannot."""
    content = dataclasses.asdict(audit)
    with files.writing(str(output)):
        output.mkdir(parents=True, exist_ok=True)
        calibration.write(output, calibrations)
        files.replace(output / PAGE, audit_page.build(content))
        files.replace(output / RESULT, files.json_text(content, indent=1))


def baseline(text: str | None, names: set[str], output: Path) -> dict[str, Any]:
    """The attributes of another audit.json; a UserError if it has none of `names`.

    Or if `output` would take its place, and the same command compare with itself then.
    """
    if text is None:
        return {}
    path = files.given("--baseline", text)
    path = path / RESULT if path.is_dir() else path
    if path == output / RESULT:
        raise UserError(
            f"--baseline={shown(text)} is what --output={shown(str(output))} would"
            " replace; give another --output."
        )
    try:
        content = json.loads(files.content(path), object_pairs_hook=files.once)
        if content["version"] != VERSION:
            raise ValueError(f"its version is {shown(content['version'])}")
        if not names & content["attributes"].keys():
            raise ValueError(f"it has none of the attributes {', '.join(names)}")
        return dict(content["attributes"])
    except description.UNREADABLE as error:
        raise UserError(
            f"--baseline={shown(text)} is no audit.json of version {VERSION} ({error});"
            " give one that this command wrote."
        ) from None
