"""Scripts that shellcheck accepts, manifests that fit together, flags that exist."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from ddpo_fair import config as configuration

LAUNCH = pathlib.Path(__file__).parents[1] / "launch"
ROOT = LAUNCH.parent
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
MANIFESTS = sorted(LAUNCH.glob("*.yaml"))


def name_of(path):
    return path.name


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_scripts_are_sound(path):
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/usr/bin/env bash\n")
    subprocess.run(["bash", "-n", path], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", path], check=True)


@pytest.mark.parametrize(
    "path", [*SCRIPTS, *MANIFESTS, LAUNCH / "README.md"], ids=name_of
)
def test_flags_and_configs_exist(path):
    known = configuration.flatten(configuration.defaults())
    text = path.read_text()
    names = set(re.findall(r"--config\.([a-z_.]+)=", text))
    assert names <= set(known)
    for config in re.findall(r"configs/[a-z_]+\.py", text):
        assert (ROOT / config).is_file()


def commands(tmp_path, *arguments, **environment):
    """What paper.sh would have Python run: one list of arguments a command."""
    python = tmp_path / "python"
    log = tmp_path / "log"
    python.write_text(
        "#!/usr/bin/env bash\n"
        f'if [[ "$1" == -c ]]; then exec {sys.executable} "$@"; fi\n'
        f'printf "%s\\t" "$@" >> {log}; echo >> {log}\n'
    )
    python.chmod(0o755)
    result = subprocess.run(
        [LAUNCH / "paper.sh", *arguments],
        env={**os.environ, "PYTHON": str(python), **environment},
        capture_output=True,
        text=True,
    )
    lines = log.read_text().splitlines() if log.exists() else []
    return result, [line.split("\t")[:-1] for line in lines]


def test_every_experiment_is_one_command(tmp_path):
    listed, _ = commands(tmp_path, "list")
    names = [line.split()[0] for line in listed.stdout.splitlines()]
    assert len(names) >= 6
    _, ran = commands(tmp_path, "all", "--config.seed=1", MODEL="embedded")
    assert len(ran) == len(names)
    runs = set()
    for command in ran:
        assert command[:2] == ["-m", "ddpo_fair.train"]
        config = command[2].removeprefix("--config=").removesuffix(":embedded")
        assert (ROOT / config).is_file()
        assert command[-1] == "--config.seed=1"
        runs |= {flag for flag in command if flag.startswith("--config.run.name=")}
    assert runs == {f"--config.run.name=paper_{name}_1" for name in names}
    _, (*_, own) = commands(tmp_path, "balance_comp", "--config.run.name=own", "--plan")
    assert own[3:] == ["--config.run.name=own", "--plan"]


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--config.seed", "3"], "paper_balance_comp_3"),
        (["-config.seed=3"], "paper_balance_comp_3"),
        (["--config.seed=2", "--config.seed", "3", "--plan"], "paper_balance_comp_3"),
        (["--config.run.name", "own", "--config.seed", "3"], None),
        (["--config.seeds", "3"], "paper_balance_comp_0"),
    ],
)
def test_a_run_is_named_for_its_seed(tmp_path, flags, name):
    _, (command,) = commands(tmp_path, "balance_comp", *flags)
    names = [f"--config.run.name={name}"] if name else []
    assert command[3:] == [*names, *flags]


@pytest.mark.parametrize("verb", ["install", "fetch"])
def test_a_pod_without_a_bucket_is_refused(tmp_path, verb):
    (tmp_path / "gcloud").write_text("#!/bin/sh\necho ran\n")
    (tmp_path / "gcloud").chmod(0o755)
    result = subprocess.run(
        [LAUNCH / "tpu_pod.sh", verb],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "ZONE": "z"},
        capture_output=True,
        text=True,
    )
    assert result.returncode and not result.stdout
    assert "name the bucket" in result.stderr


def test_occupations_that_are_not_held_out_are_prompts_of_one_experiment(tmp_path):
    from ddpo_fair import config_rules, experiment, prompts
    from ddpo_fair.embedded import occupations

    _, ran = commands(tmp_path, "many_prompts", MODEL="embedded")
    command, problems = experiment.parse(ran[0][2:], "ddpo_fair.train")
    assert problems == []
    config = command.config
    trained = [job.name for job in occupations.ALL if not job.held_out]
    assert len(config.prompts) == len(trained) == 40  # 12 of the 52 are held out
    assert prompts.unknown(config.prompts) == []
    config_rules.validate(config, [], num_devices=1)
    images = config.sample.batch_per_device * config.sample.batches
    plain = images - sum(config_rules.images_beside(config, images))
    assert plain >= 4 * 40 and len(config_rules.explicit_prompts(config)) == 80


@pytest.mark.parametrize(
    ("environment", "batch", "batches"),
    [
        ({"JAX_PLATFORMS": "cpu"}, 64, 4),
        ({"JAX_PLATFORMS": "cuda"}, 8, 32),
        ({"JAX_PLATFORMS": "cuda", "MODEL": "embedded"}, 64, 4),
    ],
)
def test_forty_prompts_take_the_batch_of_the_hosts_model(
    tmp_path, environment, batch, batches
):
    _, (command,) = commands(tmp_path, "many_prompts", **environment)
    assert f"--config.sample.batch_per_device={batch}" in command
    assert f"--config.sample.batches={batches}" in command


def test_an_unknown_experiment_is_refused(tmp_path):
    result, ran = commands(tmp_path, "figure_99")
    assert (result.returncode, ran) == (2, [])
    assert "balance_mech" in result.stderr


@pytest.mark.parametrize("path", MANIFESTS, ids=name_of)
def test_manifests_fit_together(path):
    yaml = pytest.importorskip("yaml")
    service, job = yaml.safe_load_all(path.read_text())
    name = job["metadata"]["name"]
    assert service["metadata"]["name"] == name
    assert service["spec"]["clusterIP"] == "None"  # the text, not YAML's null
    assert service["spec"]["selector"] == {"job-name": name}
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] > 1
    pod = spec["template"]["spec"]
    assert pod["subdomain"] == name
    (container,) = pod["containers"]
    rules = spec["podFailurePolicy"]["rules"]
    assert rules[0]["onExitCodes"] == {
        "containerName": container["name"],
        "operator": "In",
        "values": [2],
    }
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    (script,) = container["args"]
    if "gpu" in path.name:
        assert f"={name}-0.{name}:" in script
        assert f"num_processes={spec['completions']}" in script
        assert "process_id=$JOB_COMPLETION_INDEX" in script
    else:
        rows, columns = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split(
            "x"
        )
        chips = container["resources"]["limits"]["google.com/tpu"]
        assert spec["completions"] * chips == int(rows) * int(columns)
    for value in container["env"]:
        assert isinstance(value["value"], str)  # numbers are refused
