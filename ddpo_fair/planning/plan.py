"""What a config needs of each device and costs an epoch, before anything runs.

Counted from the traced programs: no weight is read, nothing is compiled.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ddpo_fair import config as configuration
from ddpo_fair import config_rules
from ddpo_fair.classifiers import classifier
from ddpo_fair.diffusion import ddim, sampler, stable_diffusion
from ddpo_fair.learning import learner
from ddpo_fair.planning import architectures, costs
from ddpo_fair.training import assembly

SUSTAINED = 100e12  # FLOP/s, of the example


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one device needs and does; bytes and FLOPs."""

    config: ConfigDict
    num_params: int  # of the UNet
    num_trained: int
    unet: int  # bytes of its weights
    others: int  # bytes of VAE and classifier
    state: int  # trained parameters and optimizer, as in a checkpoint
    elsewhere: int  # bytes of the optimizer that only other devices have
    num_devices: int
    trajectories: int  # of one epoch
    merged: int  # the UNet with the adapters in it; 0 without adapters
    sampling: costs.Cost  # of one batch
    decoding: costs.Cost
    classifying: costs.Cost
    updating: costs.Cost  # of one update

    @property
    def optimizer(self) -> int:
        """Bytes that training adds to the model's: adapters, moments."""
        own = self.state - self.elsewhere
        return own if self.merged else own - self.unet

    @property
    def phases(self) -> dict[str, int]:
        """Bytes of each phase, with what is always there."""
        size, batches = self.config.sample.batch_per_device, self.config.sample.batches
        always = self.unet + self.others + self.optimizer
        earlier = self.trajectories * (batches - 1) // batches
        joined = self.trajectories if batches > 1 else 0
        drawing, updating = always + self.merged, self.updating.working_bytes
        return {
            f"sampling {size} images": drawing + earlier + self.sampling.working_bytes,
            f"decoding {size} images": drawing
            + self.trajectories
            + self.decoding.working_bytes,
            f"updating with {self.config.train.microbatch} images": always
            + self.trajectories
            + joined
            + updating,
        }

    @property
    def epoch_flops(self) -> dict[str, int]:
        """FLOPs of one device in an epoch, by phase."""
        batches, train = self.config.sample.batches, self.config.train
        updates = train.updates_per_epoch * train.inner_epochs
        # An update is a forward pass and a backward one, which costs twice as much.
        again = self.updating.flops // 3 if train.recompute_log_probs else 0
        return {
            "sampling": batches * self.sampling.flops,
            "decoding": batches * self.decoding.flops,
            "classifying": batches * self.classifying.flops,
            "updating": updates * (self.updating.flops + again),
        }


def make(config: ConfigDict, num_devices: int = 1) -> Plan:
    """The plan of a config.

    Args:
        config: all settings.
        num_devices: of all hosts, that may share the optimizer.

    Raises:
        UserError: if the model is neither on this machine nor known by its name.
    """
    model, judge = architectures.model(config), architectures.judge(config)
    state = assembly.state_shapes(config, model.params["unet"])
    base = model.params["unet"] if config.train.lora.rank else {}
    trajectory, null = _trajectory(config, model)
    size, pixels = config.sample.batch_per_device, model.image_size
    shares = num_devices if config.train.shard_optimizer else 1
    drawn = partial(stable_diffusion.decode, model)
    scored = partial(classifier.probabilities, judge)
    latents = jax.ShapeDtypeStruct((size, *model.latent_shape), jnp.float32)
    images = jax.ShapeDtypeStruct((size, pixels, pixels, 3), jnp.float32)
    return Plan(
        config=config.copy_and_resolve_references(),
        num_params=_count(model.params["unet"]),
        num_trained=_count(state.params),
        unet=costs.num_bytes(model.params["unet"]),
        others=costs.num_bytes([model.params["vae"], judge.params]),
        state=costs.num_bytes(state),
        elsewhere=costs.num_bytes(state.optimizer)
        - costs.bytes_on_each(state.optimizer, shares),
        num_devices=num_devices,
        trajectories=costs.num_bytes(trajectory),
        merged=costs.num_bytes(base),
        sampling=_sampling(config, model, trajectory, null),
        decoding=costs.of(drawn, model.params["vae"], latents),
        classifying=costs.of(scored, judge.params, images),
        updating=_updating(config, model, state, base, trajectory, null),
    )


def _sampling(
    config: ConfigDict,
    model: stable_diffusion.Model,
    trajectory: sampler.Trajectory,
    null: jax.ShapeDtypeStruct,
) -> costs.Cost:
    size = config.sample.batch_per_device

    def of_batch(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size, *x.shape[2:]), x.dtype)

    keys, text = of_batch(trajectory.keys), of_batch(trajectory.text)
    sample = partial(
        sampler.denoise, model, _chain(config, model), config.sample.guidance_scale
    )
    return costs.of(sample, model.params["unet"], keys, text, null)


def _updating(
    config: ConfigDict,
    model: stable_diffusion.Model,
    state: learner.TrainState,
    base: Any,
    trajectory: sampler.Trajectory,
    null: jax.ShapeDtypeStruct,
) -> costs.Cost:
    settings = assembly.learner_settings(config, model.latent_shape)
    update = learner.make_update(
        model, _chain(config, model), settings, learner.optimizer(config.train, 1)
    )
    images = config.sample.batch_per_device * config.sample.batches
    share = images // settings.updates_per_epoch
    return costs.of(
        update,
        state,
        base,
        trajectory,
        jax.ShapeDtypeStruct((1, images), jnp.float32),
        jax.ShapeDtypeStruct((1, share), jnp.int32),
        jax.ShapeDtypeStruct((1, share, settings.steps_per_update), jnp.int32),
        null,
    )


def _trajectory(
    config: ConfigDict, model: stable_diffusion.Model
) -> tuple[sampler.Trajectory, jax.ShapeDtypeStruct]:
    """Shapes of one device's trajectories of an epoch, and of the empty prompt."""
    images = config.sample.batch_per_device * config.sample.batches
    steps = config.sample.num_steps
    length = model.text_encoder.config.max_position_embeddings
    states = (length, model.unet.config.cross_attention_dim)
    shapes = sampler.Trajectory(
        latents=jax.ShapeDtypeStruct(
            (1, images, steps + 1, *model.latent_shape), jnp.float32
        ),
        log_probs=jax.ShapeDtypeStruct((1, images, steps), jnp.float32),
        keys=jax.eval_shape(lambda: jax.random.split(jax.random.key(0), (1, images))),
        text=jax.ShapeDtypeStruct((1, images, *states), jnp.float32),
    )
    return shapes, jax.ShapeDtypeStruct(states, jnp.float32)


def _chain(config: ConfigDict, model: stable_diffusion.Model) -> ddim.Schedule:
    return ddim.schedule(model.scheduler, config.sample.num_steps, config.sample.eta)


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def text(plan: Plan) -> str:
    """The plan as a table for the terminal."""
    config = plan.config
    images = config.sample.batch_per_device * config.sample.batches
    rank = config.train.lora.rank
    how = f"LoRA of rank {rank}" if rank else "full fine-tuning"
    rows = [
        f"Plan of {config.model}, computing in {config.dtype}; {how} trains"
        f" {plan.num_trained:,} of the UNet's {plan.num_params:,} parameters.",
        "",
        _row("Memory of each device", "GB"),
        _row("  weights of the UNet", plan.unet / 1e9),
        _row("  weights of VAE and classifier", plan.others / 1e9),
        _row(f"  {_training(plan)}", plan.optimizer / 1e9),
        _row(f"  trajectories of {images} images", plan.trajectories / 1e9),
    ]
    for name, needed in plan.phases.items():
        rows.append(_row(f"  all that and {name}", needed / 1e9))
    most = max(plan.phases.values())
    rows += [
        _row("  most at once; XLA may take a third more", most / 1e9),
        _row("A checkpoint on the disk", plan.state / 1e9),
        "",
        _row("An epoch, on each device", "TFLOP"),
    ]
    flops, details = plan.epoch_flops, _details(config, images)
    for name, count in flops.items():
        rows.append(_row(f"  {name} {details[name]}", count / 1e12))
    total = sum(flops.values())
    rows.append(_row("  together", total / 1e12))
    return "\n".join([*rows, "", _evaluation(plan), _time(total)])


def _training(plan: Plan) -> str:
    """What training adds to the weights."""
    name = "adapters and optimizer" if plan.config.train.lora.rank else "optimizer"
    if not plan.config.train.shard_optimizer:
        return name
    if plan.num_devices == 1:
        return f"{name}, whole; --plan=8 divides it by 8"
    return f"{name}, a share of {plan.num_devices} devices"


def _details(config: ConfigDict, images: int) -> dict[str, str]:
    steps = config_rules.steps_per_update(configuration.flatten(config))
    pairs = images * steps * config.train.inner_epochs
    return {
        "sampling": f"{images} images in {config.sample.num_steps} steps",
        "decoding": f"{images} images",
        "classifying": f"{images} images",
        "updating": f"with {pairs} pairs of an image and a step",
    }


def _row(name: str, value: float | str) -> str:
    shown = value if isinstance(value, str) else f"{value:,.3f}"
    return f"{name:<56}{shown:>14}"


def _evaluation(plan: Plan) -> str:
    config = plan.config
    images = config.eval.images + config.log.images
    one = plan.sampling.flops + plan.decoding.flops + plan.classifying.flops
    flops = one / config.sample.batch_per_device * images
    return (
        f"An evaluation with its grid, {images} images on all devices together, costs"
        f" {flops / 1e12:,.3f} TFLOP; there is one every {config.eval.every_epochs}"
        " epochs."
    )


def _time(flops: int) -> str:
    return (
        f"At {SUSTAINED / 1e12:.0f} TFLOP/s sustained, an epoch takes"
        f" {flops / SUSTAINED:,.3f} s; scale it to your device."
    )
