"""Weights & Biases: the numbers and grids of TensorBoard's file, in a project there.

What it keeps in the run's folder, runs/NAME/wandb/, holds no key, no command line, no
source and no address of git's. WANDB_MODE=offline keeps everything there until `wandb
sync runs/NAME/wandb/offline-run-*`, which may happen on another machine.

`wandb.init(sync_tensorboard=True)` would be less code, but it listens to tensorboardX's
SummaryWriter, which hangs on a full disk: see `tensorboard`.
"""

import dataclasses
import os
import sys
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ddpo_fair import config as configuration
from ddpo_fair import errors, files
from ddpo_fair.config_rules import INSTALL_WANDB
from ddpo_fair.errors import UserError

OFFLINE = ("offline", "dryrun", "disabled")  # values of WANDB_MODE
INIT_SECONDS = 30  # W&B's own default is 90
# What could tell more than the run's own files do stays out of them.
DISCREET = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "save_code": False,
    "silent": True,
    "symlink": False,
    "x_disable_meta": True,
    "x_save_requirements": False,
}


@dataclasses.dataclass
class Writer:
    """An open run of W&B: a failure ends no training, and is said once."""

    run: Any  # wandb.Run; None after a failure

    def add(self, step: int, values: dict[str, float | np.ndarray]) -> None:
        """Adds numbers and images to the step's."""
        logged = {
            name: _image(value) if isinstance(value, np.ndarray) else value
            for name, value in values.items()
        }
        self._ask(lambda run: run.log(logged, step=step))

    def forget(self, first_step: int) -> None:
        """Does nothing: W&B keeps what it has, and takes no step a second time."""

    def close(self) -> None:
        """Waits until W&B has everything, on its server or in the folder."""
        self._ask(lambda run: run.finish())
        self.run = None

    def _ask(self, action: Any) -> None:
        if self.run is None:
            return
        try:
            action(self.run)
        except Exception as error:  # W&B raises what its process or network brings up
            self.run = None
            print(
                f"Weights & Biases fails ({type(error).__name__}: {error}). The run"
                " goes on without it; metrics.jsonl, samples/ and tensorboard/ have"
                " everything.",
                file=sys.stderr,
            )


def _image(pixels: np.ndarray) -> Any:
    import wandb  # of an extra

    return wandb.Image(pixels)


def open_writer(folder: Path, config: ConfigDict) -> Writer:
    """The run in the project `config.log.wandb`; goes on with the folder's run there.

    A UserError if W&B is not installed, wants a key, or cannot be reached.
    """
    try:
        import wandb  # of an extra
    except ImportError as error:
        raise UserError(
            f"log.wandb={config.log.wandb!r} needs the package wandb ({error}):"
            f" {INSTALL_WANDB}"
        ) from error
    entity, _, project = config.log.wandb.rpartition("/")
    offline = os.environ.get("WANDB_MODE") in OFFLINE
    known = wandb.Settings.model_fields
    wanted = {name: value for name, value in DISCREET.items() if name in known}
    if "WANDB_INIT_TIMEOUT" not in os.environ:
        wanted["init_timeout"] = INIT_SECONDS
    try:
        run = wandb.init(
            project=project,
            entity=entity or None,
            name=config.run.name,
            id=_run_id(folder),
            dir=str(folder),
            resume=None if offline else "allow",
            config=configuration.flatten(config),
            settings=wandb.Settings(**wanted),
        )
    except (wandb.errors.Error, OSError) as error:
        raise UserError(
            f"log.wandb={config.log.wandb!r}: Weights & Biases cannot be used"
            f" ({errors.first_line(error)}). Log in with `wandb login` or"
            " WANDB_API_KEY; or set WANDB_MODE=offline, which keeps everything in the"
            " run's folder for `wandb sync`; or leave log.wandb empty."
        ) from error
    return Writer(run)


def where(writer: Writer) -> str:
    """A sentence on where the curves are to be seen."""
    run = writer.run
    if run.offline:
        folder = Path(run.dir).parent
        return f"Weights & Biases, offline: {folder}; `wandb sync {folder}` uploads it."
    return f"Weights & Biases: {run.url}"


def _run_id(folder: Path) -> str:
    """The run's name in W&B's addresses, made once."""
    path = folder / "wandb" / "run_id"
    with files.writing(str(path), "free some space, or leave log.wandb empty"):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(f"{uuid.uuid4().hex[:8]}\n", encoding="utf-8")
        return path.read_text(encoding="utf-8").strip()
