"""The scripts for clusters: their shells are read, their fields held against known ones, their commands parsed.

There is no cluster here: Slurm's own commands are stand-ins that do what they do on one node, and all else is real.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import click
import msgspec
import pytest
import yaml
from helpers.tiny_run import TINY
from pyro_ltm_cli.main import cli
from torch.distributed.run import parse_args

CLUSTER = Path(__file__).resolve().parents[1] / "examples/cluster"
SLURM = CLUSTER / "slurm.sbatch"
PATIENCE = 120


class Known(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    """A table with these fields and no others."""


class Named(Known):
    name: str


class Variable(Named):
    value: str


class Mount(Named):
    mount_path: str


class Limits(Known):
    limits: dict[Literal["nvidia.com/gpu"], int]


class Container(Named):
    image: str
    command: list[str]
    args: list[str]
    env: list[Variable]
    resources: Limits
    volume_mounts: list[Mount]


class Claim(Known):
    claim_name: str


class Empty(Known):
    medium: Literal["Memory"]


class Volume(Named):
    persistent_volume_claim: Claim | None = None
    empty_dir: Empty | None = None


class PodSpec(Known):
    subdomain: str
    restart_policy: Literal["OnFailure", "Never"]
    termination_grace_period_seconds: int
    containers: list[Container]
    volumes: list[Volume]


class Pod(Known):
    spec: PodSpec


class JobSpec(Known):
    completions: int
    parallelism: int
    completion_mode: Literal["Indexed"]
    backoff_limit: int
    template: Pod


class Job(Known):
    api_version: Literal["batch/v1"]
    kind: Literal["Job"]
    metadata: Named
    spec: JobSpec


class ServiceSpec(Known):
    cluster_ip: Literal["None"] = msgspec.field(name="clusterIP")
    publish_not_ready_addresses: bool
    selector: dict[str, str]


class Service(Known):
    api_version: Literal["v1"]
    kind: Literal["Service"]
    metadata: Named
    spec: ServiceSpec


class Bucket(Known):
    name: str
    mode: Literal["MOUNT", "MOUNT_CACHED"]


class Resources(msgspec.Struct, forbid_unknown_fields=True):
    accelerators: str
    use_spot: bool


class Task(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    workdir: str
    num_nodes: int
    resources: Resources
    file_mounts: dict[str, Bucket]
    setup: str
    run: str


@pytest.fixture(scope="module")
def kubernetes() -> tuple[Service, Job]:
    service, job = yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text())
    return msgspec.convert(service, Service), msgspec.convert(job, Job)


@pytest.fixture(scope="module")
def sky() -> Task:
    return msgspec.convert(yaml.safe_load((CLUSTER / "skypilot.yaml").read_text()), Task)


def is_a_shell_script(text: str) -> None:
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "--shell=bash", "-"], input=text, text=True, check=True)


def parsed(command: str, **environment: str) -> tuple[list[str], dict[str, object]]:
    """The words of a `torchrun ... train ...`, of which torchrun's own and train's are parsed by themselves."""
    filled = re.sub(r"\$\(.*?\)(?=\"?\s)", "1", command)
    for name, value in environment.items():
        filled = filled.replace(f'"${name}"', value)
    words = shlex.split(filled)
    launch = parse_args(words[words.index("torchrun") + 1 :])
    assert launch.module
    assert (launch.training_script, launch.training_script_args[0]) == ("pyro_ltm_cli", "train")
    train = cli.get_command(click.Context(cli), "train")
    assert train is not None
    with train.make_context("train", list(launch.training_script_args[1:])) as context:
        assert context.params["resume"], "so that it goes on where it was"
    return words, vars(launch)


def test_none_is_forgotten():
    assert {path.name for path in CLUSTER.iterdir()} == {"slurm.sbatch", "kubernetes.yaml", "skypilot.yaml"}


def test_kubernetes(kubernetes):
    service, job = kubernetes
    pod = job.spec.template.spec
    (container,) = pod.containers
    assert container.command == ["/bin/sh", "-c"]
    (script,) = container.args
    is_a_shell_script(script)
    words, launch = parsed(script)
    assert job.spec.completions == job.spec.parallelism == int(launch["nnodes"])
    assert container.resources.limits["nvidia.com/gpu"] == int(launch["nproc_per_node"])
    assert launch["rdzv_endpoint"] == f"{job.metadata.name}-0.{service.metadata.name}:29500"
    assert service.spec.selector == {"job-name": job.metadata.name}
    assert pod.subdomain == service.metadata.name
    assert {each.name for each in container.volume_mounts} == {each.name for each in pod.volumes}
    assert "exec" in words, "so that torchrun hears SIGTERM"
    assert pod.termination_grace_period_seconds > launch["shutdown_timeout"]


def test_skypilot(sky):
    is_a_shell_script(sky.run)
    variables = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NUM_GPUS_PER_NODE": "8", "SKYPILOT_NODE_RANK": "0"}
    words, launch = parsed(sky.run.replace("\\\n", " "), **variables)
    assert (launch["nnodes"], launch["nproc_per_node"], launch["node_rank"]) == ("2", "8", 0)
    for option in ("--data", "--out"):
        assert words[words.index(option) + 1].startswith(tuple(sky.file_mounts)), "what outlives the machines"


def test_slurm():
    text = SLURM.read_text()
    is_a_shell_script(text)
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", text, re.MULTILINE))
    assert len(options) == text.count("#SBATCH ")
    assert options["ntasks-per-node"] == options["gpus-per-node"], "a process for each"
    assert options["signal"] == "B:USR1@120", "to the script, which hands it on"
    assert "requeue" in options


SRUN = """#!/bin/bash
# On one node: as many tasks as there are, each told who it is; a signal goes to all of them.
shift
pids=() code=0
for ((rank = 0; rank < SLURM_NTASKS; rank++)); do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" &
    pids+=($!)
done
trap 'kill -USR1 "${pids[@]}"' USR1
for pid in "${pids[@]}"; do
    while kill -0 "$pid" 2>/dev/null; do wait "$pid"; done
    wait "$pid" || code=$?
done
exit "$code"
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo 127.0.0.1; else echo "scontrol $*"; fi
"""


@pytest.fixture
def submit(tmp_path, tiny_run):
    """Starts the script as Slurm does, on one node with two tasks."""
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    told = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "node", "SLURM_NTASKS": "2", "DEVICE": "cpu"}
    told |= {"SLURM_CPUS_PER_TASK": "1", "DATA": str(tiny_run / "data"), "RUN": str(tmp_path / "run")}
    settings = (*TINY, "slow.steps=400", "slow.save_every=1000")
    words = [word for setting in settings for word in ("--set", setting)]

    def start():
        return subprocess.Popen(
            ["bash", str(SLURM), *words],
            env={**os.environ, **told, "PATH": f"{commands}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.mark.long
def test_slurm_saves_when_it_is_warned_and_goes_on(submit, tmp_path):
    job, metrics, deadline = submit(), tmp_path / "run/metrics.jsonl", time.monotonic() + PATIENCE
    while not (metrics.exists() and metrics.read_text().count('"train"') > 20):
        assert time.monotonic() < deadline
        assert job.poll() is None
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    out, err = job.communicate(timeout=PATIENCE)
    assert job.returncode == 0, err
    assert f"scontrol requeue {os.getpid()}" in out
    assert "Stopped: at step" in err
    job = submit()
    out, err = job.communicate(timeout=PATIENCE)
    assert job.returncode == 0, err
    assert "goes on from step" in err
    assert "requeue" not in out
    assert metrics.read_text().count('"train"') == 400


@pytest.mark.long
def test_slurm_ends_as_training_does(submit, tmp_path):
    (tmp_path / "run").write_text("a file")
    job = submit()
    out, err = job.communicate(timeout=PATIENCE)
    assert job.returncode == 2, err
    assert "is a file" in err
    assert "requeue" not in out
