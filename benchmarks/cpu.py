"""The embedded model's epoch on this CPU: this program, and DDPO in PyTorch.

    python benchmarks/cpu.py --epochs=4

Same model folder, same settings (those of configs/mech_eng_unrestrained.py:embedded),
same number of images, same adapted layers, all cores for both, one after the other.
Needs torch, diffusers and peft.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
CONFIG = "configs/mech_eng_unrestrained.py:embedded"
WARM_UP = 1  # epochs that compile, or fill caches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=4, help="of each program")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--images", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--output", default="", help="JSON file")
    options, flags = parser.parse_known_args()
    if options.peer:
        print(json.dumps(peer_epochs(options.epochs, options.images, flags)))
        return
    ours, images = our_epochs(options.epochs, flags)
    command = [sys.executable, __file__, "--peer", f"--epochs={options.epochs}"]
    done = subprocess.run(
        [*command, f"--images={images}", *flags], stdout=subprocess.PIPE, check=True
    )
    theirs = json.loads(done.stdout.splitlines()[-1])
    report = {"images": images, "ours": ours, "peer": theirs, "cores": _cores()}
    if options.output:
        Path(options.output).write_text(json.dumps(report, indent=2) + "\n")
    print(_table(report))


def our_epochs(
    epochs: int, flags: list[str], config: str = CONFIG
) -> tuple[dict[str, float], int]:
    """Median seconds of an epoch's phases, from a run's own metrics; its images."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "ddpo_fair.train", f"--config={config}"]
        command += [f"--config.run.dir={folder}", f"--config.epochs={epochs}"]
        command += ["--config.eval.images=0", "--config.log.images=1"]
        command += [f"--config.checkpoint.every_epochs={epochs}", *flags]
        subprocess.run(command, cwd=ROOT, check=True)
        text = (next(Path(folder).iterdir()) / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()][WARM_UP:]

    def median(name: str) -> float:
        return statistics.median(line[name] for line in lines)

    sample, update = median("sample_seconds"), median("update_seconds")
    seconds = {"sample": sample, "update": update, "epoch": sample + update}
    return seconds | {"memory_gb": lines[-1]["device_memory_gb"]}, lines[0]["images"]


def peer_epochs(epochs: int, num_images: int, flags: list[str]) -> dict[str, float]:
    """The same of the PyTorch loop: sample, decode, classify, update."""
    import resource

    import torch

    torch.set_num_threads(_cores())
    torch.manual_seed(0)
    config, loop, rest = _peer(flags)
    times: list[dict[str, float]] = []
    for _ in range(epochs):
        begin = time.perf_counter()
        trajectory, rewards = _draw(config, loop, rest, num_images)
        middle = time.perf_counter()
        _learn(config, loop, rest, trajectory, rewards)
        end = time.perf_counter()
        times.append(
            {"sample": middle - begin, "update": end - middle, "epoch": end - begin}
        )
    medians = {
        name: statistics.median(one[name] for one in times[WARM_UP:])
        for name in times[0]
    }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return medians | {"memory_gb": peak}


def _peer(flags: list[str]) -> tuple[Any, Any, dict[str, Any]]:
    """The config, the loop, and the networks and inputs beside the UNet."""
    import peer
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import (
        CLIPTextModel,
        CLIPTokenizer,
        ViTForImageClassification,
        ViTImageProcessorPil,
    )

    from ddpo_fair import experiment
    from ddpo_fair.diffusion import ddim
    from ddpo_fair.models import lora, sources
    from ddpo_fair.training import assembly

    command, problems = experiment.parse([f"--config={CONFIG}", *flags], "cpu")
    assert not problems, problems
    config = command.config
    folder = sources.model_folder(config.model)
    scorer = sources.classifier_folder(config.attributes.gender.classifier)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    chain = ddim.schedule(
        json.loads(scheduler.read_text()), config.sample.num_steps, config.sample.eta
    )
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    unet = unet.float().to(memory_format=torch.channels_last)
    loop = peer.Peer(unet, chain, config.sample.guidance_scale, autocast=False)
    settings = config.train.lora
    everywhere = settings.target_modules == assembly.ALL_MODULES
    sites = lora.EVERYWHERE if everywhere else settings.target_modules
    loop.add_adapters(settings.rank, sites, config.train.learning_rate)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").float()
    length = encoder.config.max_position_embeddings
    ids = tokenizer(
        ["", config.prompts[0]],
        padding="max_length",
        max_length=length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    with torch.no_grad():
        null, text = encoder(ids).last_hidden_state.chunk(2)
    return (
        config,
        loop,
        {
            "null": null,
            "text": text,
            "vae": AutoencoderKL.from_pretrained(folder / "vae").float(),
            "classifier": ViTForImageClassification.from_pretrained(scorer).float(),
            "processor": ViTImageProcessorPil.from_pretrained(scorer),
        },
    )


def _draw(config: Any, loop: Any, rest: dict[str, Any], num_images: int) -> tuple:
    """Trajectories of an epoch, in batches, and the reward of each image."""
    import torch

    unet, vae = loop.unet.config, rest["vae"]
    shape = (unet.in_channels, unet.sample_size, unet.sample_size)
    parts, female = [], []
    batch = config.sample.batch_per_device * config.distributed.cpu_devices
    for first in range(0, num_images, batch):
        size = min(batch, num_images - first)
        text = rest["text"].expand(size, -1, -1)
        part = loop.sample(size, shape, text, rest["null"])
        parts.append(part)
        with torch.no_grad():
            latents = part["latents"][:, -1] / vae.config.scaling_factor
            images = (vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
            pixels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
            values = rest["processor"](list(pixels), return_tensors="pt").pixel_values
            female.append(rest["classifier"](values).logits.softmax(1)[:, 0])
    trajectory = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    recognised = torch.cat(female) > 0.5
    share = recognised.float().mean()
    sign = torch.where(share < 0.5, 1.0, -1.0)
    rewards = (share - 0.5).abs() * torch.where(recognised, sign, -sign)
    return trajectory, rewards


def _learn(
    config: Any, loop: Any, rest: dict[str, Any], trajectory: dict, rewards: Any
) -> None:
    """The epoch's updates over the same number of pairs as this program takes."""
    import torch

    from ddpo_fair import config as configuration
    from ddpo_fair import config_rules

    train = config.train
    steps = config_rules.steps_per_update(configuration.flatten(config))
    last = config.sample.num_steps - train.skip_last_steps
    advantages = rewards / config.advantage.scale
    text = rest["text"].expand(len(rewards), -1, -1)
    order = torch.randperm(len(rewards))
    for share in order.chunk(train.updates_per_epoch):
        images = share.repeat(steps)
        drawn = [torch.randperm(last)[:steps] for _ in share]
        chosen = torch.stack(drawn, 1).flatten()
        loop.update(
            trajectory,
            advantages,
            text,
            rest["null"],
            min(train.microbatch * config.distributed.cpu_devices, len(images)),
            images,
            chosen,
            train.clip_range,
        )


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _table(report: dict[str, Any]) -> str:
    ours, theirs = report["ours"], report["peer"]
    rows = [
        f"{report['images']} images an epoch, {report['cores']} cores",
        "",
        "| | this program | PyTorch | ratio |",
        "|---|---|---|---|",
    ]
    for name in ("sample", "update", "epoch"):
        mine, other = ours[name], theirs[name]
        rows.append(f"| {name}, s | {mine:.1f} | {other:.1f} | {other / mine:.2f} |")
    mine, other = ours["memory_gb"], theirs["memory_gb"]
    rows.append(f"| peak memory, GB | {mine:.1f} | {other:.1f} | |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
