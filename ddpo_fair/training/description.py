"""What a run is, as config.json and checkpoints say: settings, files of its models."""

import json
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

import ddpo_fair
from ddpo_fair import attribute_rules, parallel
from ddpo_fair import config as configuration
from ddpo_fair.classifiers import classes
from ddpo_fair.errors import UserError, differences, shown
from ddpo_fair.models import lora_files, sources

# Settings that change no number a run writes: how it is run, not what it does.
IN_GROUPS = re.compile(r"(log|checkpoint|run|distributed)\.").match
INCIDENTAL = (
    "train.microbatch",
    "train.remat",
    "train.ratio_tolerance",
    "train.max_skipped_updates",
    "train.max_kl",
    "train.on_divergence",
    "train.max_restores",
    "train.shard_optimizer",
    *filter(IN_GROUPS, configuration.flatten(configuration.defaults())),
)
# Settings that may change when a run goes on: `images_per_epoch` guards the first two,
# `check` the model's files.
FREE = ("sample.batch_per_device", "sample.batches", "variant", *INCIDENTAL)
# What parsing a file of JSON that means something else may raise.
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError)
UNREADABLE += (RecursionError, OverflowError)
UNKNOWN = (
    "An older version began this run and kept no fingerprint of its model and"
    " classifier: what they are now is taken to be what they were."
)


def resolved(config: ConfigDict) -> ConfigDict:
    """A copy with absolute paths of models, classifiers and LoRA on this disk."""
    config, flat = config.copy_and_resolve_references(), configuration.flatten(config)
    places = {field: sources.absolute(field, flat[field]) for field in fields(flat)}
    config.update_from_flattened_dict(places)
    return config


def fields(settings: Mapping[str, Any]) -> list[str]:
    """Names of the settings that name weights: LoRA if given, model, classifiers."""
    given = ["base_lora"] if settings.get("base_lora") else []  # the quickest first
    return given + [x for x in settings if x == "model" or x.endswith(".classifier")]


def of(config: ConfigDict, weights: Mapping[str, Any] | None) -> dict[str, Any]:
    """The description of a run, as JSON; `weights` has each field's `identity`."""
    return {
        "config": configuration.flatten(config),
        "targets": attribute_rules.targets(config),
        "images_per_epoch": images_per_epoch(config),
        "version": ddpo_fair.__version__,
        "weights": weights,
    }


def identity(config: ConfigDict, field: str) -> dict[str, Any]:
    """What a config's model, classifier or LoRA is; see `sources.identity`."""
    reference = configuration.flatten(config)[field]
    if field == "model":
        return sources.identity(field, reference, config.variant)
    if field == "base_lora":
        return lora_files.identity(reference, field)
    if reference == classes.TYPOLOGY:
        empty = {"folder": None, "revision": None, "files": {}}
        return empty | {"fingerprint": classes.TYPOLOGY}
    if reference == configuration.EMBEDDED:
        attribute = configuration.ATTRIBUTE.fullmatch(field)[1]
        reference = str(sources.classifier_folder(reference, attribute=attribute))
    return sources.identity("classifier", reference)


def images_per_epoch(config: ConfigDict) -> int:
    """Images of all devices in one epoch, N."""
    per_device = config.sample.batch_per_device * config.sample.batches
    return parallel.num_devices() * per_device


def known(record: Mapping[str, Any], field: str) -> dict[str, Any] | None:
    """What a description says that the model or the classifier was, if it does."""
    weights = record.get("weights")
    before = weights.get(field) if isinstance(weights, dict) else None
    sound = isinstance(before, dict) and isinstance(before.get("files"), dict)
    return before if sound else None


def check(
    record: Mapping[str, Any], field: str, reference: str, now: Mapping[str, Any]
) -> bool:
    """Whether the record knows what a field was; a UserError if it is not `now`."""
    before = known(record, field)
    if before is None:
        return False
    was, files = before["files"], now["files"]
    if was == files or (len(was) == 1 and [*was.values()] == [*files.values()]):
        return True  # a file alone may have another name now
    others = [x for x in {**was, **files} if was.get(x) != files.get(x)]
    setting, name = f"{field}={shown(reference)}", reference.partition("@")[0]
    old = configuration.renamed(record["config"]).get(field, reference)
    if name != str(old).partition("@")[0]:
        way_out = f"Give --config.{field}={old}"
    elif reference in configuration.SHIPPED:
        way_out = f"Install ddpo_fair {record.get('version')}"
    elif now.get("revision") and before.get("revision"):
        way_out = f"Give --config.{field}={name}@{before['revision']}"
    else:
        way_out = "Put the files back that it was trained with"
    raise UserError(
        f"{setting} is not what the run was trained with: {', '.join(others[:3])}"
        f" {'differs' if len(others) == 1 else 'differ'} (fingerprint"
        f" {before.get('fingerprint')} then, {now['fingerprint']} now). {way_out}, or"
        " train under another --config.run.name."
    )


def differences_of(record: Mapping[str, Any], config: ConfigDict) -> list[str]:
    """In what a run with these settings would differ from its description."""
    before = configuration.renamed(dict(record["config"]))
    now, defaults = (
        json.loads(json.dumps(configuration.flatten(one)))
        for one in (config, configuration.defaults(config.attributes))
    )
    before = defaults | before  # what an older version did not have is default
    free = set(FREE)
    if before.get("train.final_learning_rate") == 1.0:
        free.add("epochs")  # else the learning rate depends on it
    for field in fields(before):  # which older versions kept as typed
        before[field] = sources.absolute(field, before[field])
        if known(record, field) and now.get(field):  # `check` compares the files
            free.add(field)
    if "targets" in record:  # the shares themselves, wherever they are kept now
        free.add("targets")
    changes = differences(before, now, free)
    targets = json.loads(json.dumps(attribute_rules.targets(config)))
    if record.get("targets", targets) != targets:
        changes.append(f"the targets in {config.targets!r} were others")
    images_before, images = record["images_per_epoch"], images_per_epoch(config)
    if images_before != images:
        changes.append(
            f"an epoch had {shown(images_before)} images and now has {images}"
            " (devices x sample.batch_per_device x sample.batches)"
        )
    return changes
