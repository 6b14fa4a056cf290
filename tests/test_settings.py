"""Whole runs with other settings than those of the tiny run."""

import json

import numpy as np
import pytest
import tiny_model
import tiny_run

from ddpo_fair import config as configuration

pytestmark = pytest.mark.long


def settings(tiny, root):
    changes = {
        "eval.every_epochs": 2,
        "advantage.name": "per_prompt",
        "advantage.min_count": 2,
        "sample.explicit_share": 0.25,
    }
    return tiny_model.config(*tiny, root, **changes)


def test_other_settings_train_too(tiny, tmp_path):
    config = settings(tiny, tmp_path)
    config.epochs = 2
    config.prompts = tiny_model.PROMPTS
    config.reward.name, config.advantage.name = "shift", "batch"
    config.train.objective = "truly_ppo"
    config.train.lora.rank = 0
    config.train.updates_per_epoch, config.train.inner_epochs = 1, 2
    config.train.skip_last_steps, config.train.timestep_fraction = 1, 0.7
    config.train.microbatch = 4
    for line in tiny_run.lines_of(config):
        assert list(line["prompts"]) == list(tiny_model.PROMPTS)
        parts = line["prompts"].values()
        for name in ("num_female", "num_male", "num_none"):
            assert sum(part[name] for part in parts) == line[name]
        assert 0 <= line["reward_mean"] <= 1 and line["ratio_deviation"] <= 1e-5
        assert {"eval_q", "q"} <= set(line["prompts"][tiny_model.PROMPTS[1]])


def test_a_penalty_keeps_the_policy_near_the_base_policy(tiny, tmp_path):
    lines = {}
    for weight, of_preserved in ((1e-6, 1), (1e3, 1), (0.1, 1e4)):
        config = settings(tiny, tmp_path)
        config.run.name, config.sample.explicit_share = f"weight_{weight}", 0.0
        config.eval.images = 0
        config.sample.preserve_prompts = tiny_model.PROMPTS[1:]
        config.train.base_kl_weight, config.train.learning_rate = weight, 1e-3
        config.sample.preserve_weight = float(of_preserved)
        lines[weight] = tiny_run.lines_of(config)
        for line in lines[weight]:  # 4 of 16 images are of preservation prompts
            assert line["num_female"] + line["num_male"] + line["num_none"] == 12
    free, held, preserved = (one[-1]["base_kl"] for one in lines.values())
    assert 0 < held < free / 4 and 0 < preserved < free / 4


def test_two_attributes_train_jointly(tiny, tmp_path):
    """Of one classifier, whose labels mean classes of both; with targets by prompt."""
    config = settings(tiny, tmp_path)
    config.attributes = configuration.defaults(("gender", "style")).attributes
    style = config.attributes.style
    style.classifier = config.attributes.gender.classifier = tiny_model.save_classifier(
        tmp_path / "both"
    ).as_posix()
    style.classes, style.target = ("man", "woman"), (0.3, 0.7)
    for one in config.attributes.values():
        one.confidence_threshold = 0.5
    config.sample.explicit_share, config.sample.batches = 0.0, 4
    config.epochs, config.reward.combine = 2, "joint"
    table = tmp_path / "targets.json"
    shares = {"man": 0.9, "woman": 0.1}
    table.write_text(json.dumps({config.prompts[0]: {"style": shares}}))
    config.targets = str(table)
    for line in tiny_run.lines_of(config):
        found = line["attributes"]
        assert list(found) == ["gender", "style", "gender x style"]
        for one in found.values():
            assert sum(one["counts"].values()) + one["num_none"] == line["images"]
        # Their classes are each other's in another order.
        counts = found["style"]["counts"]
        assert (counts["woman"], counts["man"]) == (
            line["num_female"],
            line["num_male"],
        )
        cells = found["gender x style"]["counts"]
        assert cells["female man"] == cells["male woman"] == 0
        wanted = np.outer((0.5, 0.5), (0.9, 0.1)).ravel()
        shares = np.array(list(found["gender x style"]["shares"].values()))
        distance = np.abs(shares - wanted).sum() / 2
        assert found["gender x style"]["distance"] == pytest.approx(distance)
        assert line["ratio_deviation"] <= 1e-5
    assert "eval_distance" in found["gender x style"]
