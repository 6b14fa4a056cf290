"""Weights & Biases: the numbers and grids of TensorBoard's file, in a project there.

Only with `config.log.wandb` and the extra `wandb`. What the run's own folder keeps of
it, runs/NAME/wandb/, holds no key, no command line, no source and no address of git's.
W&B's own variables work: WANDB_MODE=offline keeps everything in that folder until
`wandb sync runs/NAME/wandb/offline-run-*`, which may happen on another machine.
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
from ddpo_fair.errors import UserError

INSTALL = 'pip install "ddpo_fair[wandb]"; or leave log.wandb empty.'
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
    """An open run of W&B; see `run_log.MetricWriter`.

    A failure ends no training: it is said once, and the run's own files go on.
    """

    run: Any  # wandb.Run; None after a failure
    waiting: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def scalar(self, name: str, value: float, step: int) -> None:
        """Adds a point to a curve."""
        self.waiting.setdefault(step, {})[name] = value

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """Adds an image, uint8 [H, W, 3]."""
        import wandb

        self.waiting.setdefault(step, {})[name] = wandb.Image(image)

    def flush(self) -> None:
        """Hands over what was added, a step at a time: W&B takes them in order."""
        waiting, self.waiting = self.waiting, {}
        for step in sorted(waiting):
            self._ask(lambda run, step=step: run.log(waiting[step], step=step))

    def forget(self, first_step: int) -> None:
        """Drops what waits; W&B keeps what it has, and takes no step a second time."""
        self.waiting = {
            step: logged for step, logged in self.waiting.items() if step < first_step
        }

    def close(self) -> None:
        """Waits until W&B has everything, on its server or in the folder."""
        self.flush()
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


def open_writer(folder: Path, config: ConfigDict) -> Writer:
    """The run in the project `config.log.wandb`; goes on with the folder's run there.

    Raises:
        UserError: if W&B is not installed, wants a key, or cannot be reached.
    """
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            f"log.wandb={config.log.wandb!r} needs the package wandb ({error}):"
            f" {INSTALL}"
        ) from error
    entity, _, project = config.log.wandb.rpartition("/")
    offline = os.environ.get("WANDB_MODE") in OFFLINE
    wanted = {"init_timeout": INIT_SECONDS} if not _told_timeout() else {}
    known = wandb.Settings.model_fields
    wanted |= {name: value for name, value in DISCREET.items() if name in known}
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
            f" ({_first_line(error)}). Log in with `wandb login` or WANDB_API_KEY; or"
            " set WANDB_MODE=offline, which keeps everything in the run's folder for"
            " `wandb sync`; or leave log.wandb empty. Nothing of the run is lost."
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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(f"{uuid.uuid4().hex[:8]}\n", encoding="utf-8")
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}).") from error


def _told_timeout() -> bool:
    return "WANDB_INIT_TIMEOUT" in os.environ


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
