"""The peer: DDPO in PyTorch on diffusers' UNet, as its users run it.

Eager, channels last, scaled_dot_product_attention, LoRA by PEFT under autocast, as
ddpo-pytorch has it; but the chain's coefficients are computed once, as ours are.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch


class Peer:
    """A UNet with adapters, the chain, and the optimizer.

    Args:
        unet: diffusers' UNet2DConditionModel, on its device, in its dtype.
        chain: `gaussian_step.Schedule` of NumPy arrays [T].
        guidance_scale: above 1.
        autocast: whether to compute in bfloat16.
    """

    def __init__(
        self, unet: Any, chain: Any, guidance_scale: float, autocast: bool
    ) -> None:
        self.unet, self.chain, self.guidance_scale = unet, chain, guidance_scale
        self.autocast = autocast
        self.device = next(unet.parameters()).device
        names = ("timesteps", "latents_scale", "output_scale", "std")
        self.steps = {
            name: torch.as_tensor(np.asarray(getattr(chain, name)), device=self.device)
            for name in names
        }

    def add_adapters(
        self, rank: int, sites: Sequence[str], learning_rate: float
    ) -> None:
        """LoRA on the layers with one of `sites` in their path, and its AdamW."""
        from peft import LoraConfig

        from ddpo_fair.models import lora

        self.unet.requires_grad_(False)
        kinds = (torch.nn.Linear, torch.nn.Conv2d)
        layers = [
            name
            for name, module in self.unet.named_modules()
            if isinstance(module, kinds) and any(lora.has_part(name, x) for x in sites)
        ]
        adapters = LoraConfig(r=rank, lora_alpha=rank, target_modules=layers)
        self.unet.add_adapter(adapters)
        trained = [p for p in self.unet.parameters() if p.requires_grad]
        for parameter in trained:
            parameter.data = parameter.data.float()
        self.trained = trained
        self.optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=1e-4)

    def _computing(self) -> Any:
        if not self.autocast:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _mean(self, latents: Any, step: Any, text: Any, null: Any) -> tuple[Any, Any]:
        """Mean [N, C, h, w] and std [N, 1, 1, 1] of the next latents."""
        timesteps = self.steps["timesteps"][step]
        with self._computing():
            output = self.unet(
                torch.cat([latents, latents]),
                torch.cat([timesteps, timesteps]),
                torch.cat([null.expand_as(text), text]),
            ).sample.float()
        without, with_text = output.chunk(2)
        output = without + self.guidance_scale * (with_text - without)
        scale, factor, std = (
            self.steps[name][step].view(-1, 1, 1, 1)
            for name in ("latents_scale", "output_scale", "std")
        )
        return scale * latents + factor * output, std

    @torch.no_grad()
    def sample(
        self, num_images: int, shape: tuple[int, int, int], text: Any, null: Any
    ) -> dict[str, Any]:
        """Latents [N, T+1, C, h, w] and log-probs [N, T]."""
        latents = torch.randn((num_images, *shape), device=self.device)
        states, log_probs = [latents], []
        for step in range(len(self.steps["timesteps"])):
            index = torch.full((num_images,), step, device=self.device)
            mean, std = self._mean(latents, index, text, null)
            latents = mean + std * torch.randn_like(mean)
            log_probs.append(_log_prob(latents, mean, std))
            states.append(latents)
        return {
            "latents": torch.stack(states, 1),
            "log_probs": torch.stack(log_probs, 1),
        }

    def update(
        self,
        trajectory: dict[str, Any],
        advantages: Any,
        text: Any,
        null: Any,
        microbatch: int,
        images: Any,
        steps: Any,
        clip_range: float,
    ) -> None:
        """One optimizer step over the pairs `images` [P], `steps` [P]."""
        turns = len(images) // microbatch
        for turn in range(turns):
            part = slice(turn * microbatch, (turn + 1) * microbatch)
            which, step = images[part], steps[part]
            latents = trajectory["latents"][which, step]
            following = trajectory["latents"][which, step + 1]
            mean, std = self._mean(latents, step, text[which], null)
            log_prob = _log_prob(following, mean, std)
            ratio = torch.exp(log_prob - trajectory["log_probs"][which, step])
            advantage = advantages[which]
            clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
            loss = torch.maximum(-advantage * ratio, -advantage * clipped).mean()
            (loss / turns).backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def _log_prob(following: Any, mean: Any, std: Any) -> Any:
    density = -((following - mean) ** 2) / (2 * std**2) - torch.log(std)
    return (density - 0.5 * math.log(2 * math.pi)).mean(dim=(1, 2, 3))


def synchronised(function: Callable[[], Any]) -> Callable[[], Any]:
    """`function`, which returns when the device is done."""

    def run() -> Any:
        result = function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return result

    return run
