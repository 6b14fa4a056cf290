"""What a bare installation brings along, and whether it is known to be unsafe."""

import json
import subprocess
import sys
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HEAVY = {"torch", "tensorflow", "diffusers", "peft", "tensorflow-datasets", "wandb"}


def closure(name, extras=frozenset()):
    """The packages that a package needs here, itself among them."""
    found, waiting = set(), [(name, extras)]
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in found:
            continue
        found.add((name, extras))
        for line in metadata.requires(name) or ():
            needed = Requirement(line)
            chosen = [{"extra": extra} for extra in (extras or {""})]
            if not needed.marker or any(map(needed.marker.evaluate, chosen)):
                other = canonicalize_name(needed.name)
                waiting.append((other, frozenset(needed.extras)))
    return {name for name, _ in found}


def vulnerable(report, packages):
    """Names, versions and advisories of those among the packages that have any."""
    return [
        f"{found['name']} {found['version']}: {flaw['id']}"
        for found in report["dependencies"]
        if canonicalize_name(found["name"]) in packages
        for flaw in found.get("vulns", ())
    ]


def test_the_bare_installation_is_small():
    needed = closure("ddpo-fair")
    assert {"jax", "jaxlib", "flax", "numpy"} <= needed
    assert not needed & HEAVY


def test_a_vulnerable_package_is_named():
    flaw = {"id": "PYSEC-0", "fix_versions": ["2"], "aliases": [], "description": ""}
    report = {
        "dependencies": [
            {"name": "Flax", "version": "1", "vulns": [flaw]},
            {"name": "jax", "version": "1", "vulns": []},
            {"name": "optax", "skip_reason": "not found"},
            {"name": "elsewhere", "version": "1", "vulns": [flaw]},
        ],
        "fixes": [],
    }
    assert vulnerable(report, closure("ddpo-fair")) == ["Flax 1: PYSEC-0"]


def test_no_dependency_is_known_to_be_vulnerable():
    """Asks PyPI's advisories; where they cannot be reached, the test is skipped."""
    pytest.importorskip("pip_audit")
    command = [sys.executable, "-m", "pip_audit", "--format=json", "--timeout=10"]
    found = subprocess.run(
        [*command, "--progress-spinner=off"], capture_output=True, text=True
    )
    if not found.stdout.startswith("{"):
        pytest.skip(f"pip-audit: {found.stderr.strip().splitlines()[-1][:200]}")
    report, packages = json.loads(found.stdout), closure("ddpo-fair")
    audited = {
        canonicalize_name(one["name"])
        for one in report["dependencies"]
        if "skip_reason" not in one
    }
    if not audited & packages - {"ddpo-fair"}:
        pytest.skip("PyPI's advisories cannot be reached")
    assert not vulnerable(report, packages)
