"""What an audit found: what audit.json holds (docs/audit.schema.json), written."""

import dataclasses
import os
import time
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import ddpo_fair
from ddpo_fair import attribute_rules, files
from ddpo_fair.auditing import audit_page, figures
from ddpo_fair.auditing.classified import Classified
from ddpo_fair.auditing.image_list import ImageList
from ddpo_fair.errors import UserError, shown

RESULT, PAGE = "audit.json", "audit.html"
VERSION = 1


@dataclasses.dataclass(frozen=True)
class Audit:
    """An audit; its figures are as `figures` has them."""

    version: int
    written_by: dict[str, str]
    source: dict[str, str | None]  # what was audited
    images: int  # that could be read
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
