"""What a bare installation brings along, and whether it is known to be unsafe."""

import json
from importlib import metadata

import pytest
import tiny_run
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


def test_the_bare_installation_is_small():
    needed = closure("ddpo-fair")
    assert {"jax", "jaxlib", "flax", "numpy"} <= needed
    assert not needed & HEAVY


@pytest.mark.long
def test_no_dependency_is_known_to_be_vulnerable():
    """Asks PyPI's advisories; where they cannot be reached, the test is skipped."""
    pytest.importorskip("pip_audit")
    flags = "--format=json", "--timeout=3", "--progress-spinner=off"
    output, errors = tiny_run.python("-m", "pip_audit", *flags).communicate()
    if not output.startswith("{"):
        pytest.skip(f"pip-audit: {errors.strip().splitlines()[-1][:200]}")
    packages = closure("ddpo-fair")
    audited = [
        one
        for one in json.loads(output)["dependencies"]
        if "skip_reason" not in one and canonicalize_name(one["name"]) in packages
    ]
    if not audited:
        pytest.skip("PyPI's advisories cannot be reached")
    assert [one for one in audited if one["vulns"]] == []
