"""What gpu.py asks of `train` itself: whole runs, ended and resumed, as a user's are.

A function each; none starts JAX's devices in its own process, for a run needs them.
"""

import functools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gpu_setup
import kill


def train_embedded(options: Any) -> dict[str, Any]:
    """The README's run, a second one killed and resumed, and one compiled afresh."""
    epochs = 3 if options.tiny else 20
    # A CPU is two devices of 64 images there, so that these are the same images.
    flags = {"epochs": epochs, "sample.batches": 2}
    if options.tiny:
        small = {"sample.batch_per_device": 4, "sample.num_steps": 3, "eval.images": 8}
        flags |= {**small, "train.skip_last_steps": 1, "train.microbatch": 4}
    run = functools.partial(_Run, options, "embedded", flags)
    whole, killed = run("embedded"), run("embedded_killed")
    whole.finish()
    result = {"epochs": len(whole.lines()), **_numbers(whole)}
    killed.kill_after(epochs // 2)
    killed.finish()
    result["resumed_equals_unbroken"] = _same(whole, killed)
    fresh = run("embedded_compiled_again")
    fresh.kill_after(2, JAX_ENABLE_COMPILATION_CACHE="false")
    result["compiled_again_equals"] = _same(whole, fresh)
    return result


def train_sd15(options: Any) -> dict[str, Any]:
    """Stable Diffusion 1.5 with random weights, killed after two epochs of three."""
    return _train_large(options, "sd15", options.batch // 2)


def train_sdxl(options: Any) -> dict[str, Any]:
    """The same of SDXL."""
    return _train_large(options, "sdxl", 1)


def _train_large(options: Any, variant: str, microbatch: int) -> dict[str, Any]:
    models = Path(options.runs) / f"{variant}_random"
    begin = time.monotonic()
    if not (models / "made").exists():
        make = [sys.executable, __file__, variant, models]
        make += ["--tiny"] if options.tiny else []
        subprocess.run(make, env={**os.environ, "JAX_PLATFORMS": "cpu"}, check=True)
    made = time.monotonic() - begin
    flags = {
        "model": models / "model",
        "variant": "",  # full weights
        "attributes.gender.classifier": models / "classifier",
        "attributes.gender.confidence_threshold": 0.5,
        "reward.name": "shift",
        "attributes.gender.target_class": "female",
        "advantage.name": "batch",  # the images hardly differ
        "sample.num_steps": gpu_setup.STEPS,
        "sample.batch_per_device": options.batch,
        "sample.batches": 1,
        "train.microbatch": microbatch,
        "eval.images": 0,
        "log.images": 8,
        "checkpoint.every_epochs": 1,
    }
    if options.tiny:
        small = {"sample.num_steps": 4, "log.images": 2, "eval.images": 2}
        flags |= {**small, "train.skip_last_steps": 2}
    run = _Run(options, variant, flags, variant, epochs=3)
    run.kill_after(2)
    begin = time.monotonic()
    run.finish()
    resuming, numbers = time.monotonic() - begin, _numbers(run)
    skipped = flags.get("train.skip_last_steps", 2)  # 2 is the default
    pairs = options.batch * (flags["sample.num_steps"] - skipped)
    return {
        "epochs": len(run.lines()),
        "saving_seconds": made,
        "resuming_seconds": resuming,
        # Sampled, decoded and classified; and updated with log-probs computed again.
        "sampled_per_second": options.batch / numbers["sample_seconds"],
        "pairs_per_second": pairs / numbers["update_seconds"],
        **numbers,
    }


KINDS = {  # what the folders' readers ask for, of any size
    "text_encoder": {"model_type": "clip_text_model"},
    "text_encoder_2": {"model_type": "clip_text_model"},
    "unet": {"_class_name": "UNet2DConditionModel"},
    "vae": {"_class_name": "AutoencoderKL"},
    "scheduler": {"_class_name": "DDIMScheduler"},
}


def save_models(variant: str, tiny: bool, folder: Path) -> None:
    """A variant's model and a ViT-B/16 with random weights, in official layout.

    The tokenizer knows few words, and the text encoder's table is as short.
    """
    import tiny_model

    prompts = [f"photo of the face of a {x}mechanical engineer" for x in ("", "male ")]
    found = gpu_setup.configs(variant, tiny)
    configs = {part: {**KINDS[part], **found[part]} for part in found}
    draw, length = gpu_setup.draw, None if tiny else 77
    tiny_model.save_model(folder / "model", prompts, configs, draw, length)
    vit = {"model_type": "vit", "id2label": {"0": "female", "1": "male"}}
    tiny_model.save_vit(folder / "classifier", vit, 224, draw)
    (folder / "made").touch()


class _Run:
    """A run of `train` as a process, by its flags."""

    def __init__(
        self, options: Any, variant: str, flags: dict, name: str, **more: Any
    ) -> None:
        self.variant, self.flags, self.seconds = variant, {**flags, **more}, 0.0
        self.flags |= {"run.dir": Path(options.runs), "run.name": name}
        self.folder, self.settings = Path(options.runs) / name, options.settings
        self._log = Path(options.runs) / f"{name}.log"

    def start(self, **environment: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "ddpo_fair.train"]
        command += [f"--config={gpu_setup.CONFIG}:{self.variant}"]
        command += [f"--config.{name}={value}" for name, value in self.flags.items()]
        command += self.settings
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        log = self._log.open("ab")
        return subprocess.Popen(
            command,
            cwd=gpu_setup.ROOT,
            env={**os.environ, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
        )

    def finish(self, **environment: str) -> None:
        """Runs to the end; RuntimeError with its last lines if it fails."""
        begin = time.monotonic()
        status = self.start(**environment).wait()
        self.seconds = time.monotonic() - begin
        if status:
            raise RuntimeError(f"status {status}: {self._log.read_text()[-1500:]}")

    def kill_after(self, epochs: int, **environment: str) -> None:
        """SIGKILL when so many epochs have their line."""
        process = self.start(**environment)
        while len(self.lines()) < epochs and process.poll() is None:
            time.sleep(0.02)
        process.kill()
        process.wait()

    def lines(self) -> list[dict[str, Any]]:
        path = self.folder / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines()]


def _numbers(run: _Run) -> dict[str, Any]:
    """What a run's lines say; seconds are medians without the first epoch's."""
    lines = run.lines()
    later = lines[1:] or lines

    def median(name: str) -> float:
        return statistics.median(line[name] for line in later)

    first = {f"first_{x}": lines[0].get(x) for x in ("num_female", "num_male")}
    clocks = ("sample_seconds", "update_seconds", "epoch_seconds", "images_per_second")
    return {
        "run_seconds": run.seconds,
        **{name: median(name) for name in clocks},
        "first_epoch_seconds": lines[0]["epoch_seconds"],
        "ratio_deviation": max(line["ratio_deviation"] for line in lines),
        "kl_last": lines[-1]["kl_last"],
        "skipped_updates": sum(line["skipped_updates"] for line in lines),
        "finite": all(math.isfinite(line["loss"]) for line in lines),
        **first,
        "eval_q": [line["eval_q"] for line in lines if "eval_q" in line],
        "reward_mean": [round(line["reward_mean"], 4) for line in lines],
        "peak_gb": lines[-1]["device_memory_gb"],
    }


def _same(one: _Run, other: _Run) -> str:
    """How many of the other's epochs equal the one's, and where they first part."""
    pairs = list(zip(one.lines(), other.lines(), strict=False))
    for count, lines in enumerate(pairs):
        a, b = (
            {k: v for k, v in x.items() if not k.endswith(kill.CLOCKS)} for x in lines
        )
        parted = [f"{k} {a[k]} {b.get(k)}" for k in a if a[k] != b.get(k)]
        if parted:
            return f"{count} of {len(pairs)}; then {'; '.join(parted[:6])}"
    return f"{len(pairs)} of {len(pairs)}"


if __name__ == "__main__":  # in a process of its own, for it starts JAX on a CPU
    save_models(sys.argv[1], "--tiny" in sys.argv, Path(sys.argv[2]))
