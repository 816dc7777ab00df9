"""A process that dies is started again with all others, and the run ends as if nothing had happened.

By torch's own agent, the one in `torchrun`, in this process; its workers are forked, which saves the seconds of their
imports. `test_torchrun.py` has the same by `torchrun` itself.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from helpers.ranks import call_command, free_port
from safetensors.torch import load_file
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.distributed.run import main as torchrun

from pyro_ltm.runs.metrics import read_metrics

PATIENCE = 100


@pytest.fixture(autouse=True)
def _signals_as_before():
    """The agent takes signals for itself and does not give them back."""
    kept = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    }
    yield
    for number, action in kept.items():
        signal.signal(number, action)


def test_torchrun_trains(settings, trained, tmp_path, capfd):
    """Its own `main`, in this process, which has imported torch; the workers begin from nothing."""
    changed = settings(**{"slow.steps": 2, "slow.eval_sequences": 2})
    words = ["-m", "pyro_ltm_cli", "train", "--data", trained / "data", "--out", tmp_path / "run", "--json", *changed]
    torchrun([str(word) for word in ("--standalone", "--nproc-per-node", 2, *words)])
    assert json.loads(capfd.readouterr().out)["step"] == 2
    assert [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "train"] == [1, 2]


def launch(words: list[object], folder: Path, restarts: int = 0) -> None:
    """Two workers that run the command; each writes its process id into the folder."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id=folder.name,
        rdzv_backend="c10d",
        rdzv_endpoint=f"127.0.0.1:{free_port()}",
        local_addr="127.0.0.1",
        max_restarts=restarts,
        monitor_interval=0.1,
        start_method="forkserver",
    )
    elastic_launch(config, call_command)([str(word) for word in words], folder)


def kill_when(metrics: Path, rows: int, worker: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not (metrics.exists() and metrics.read_text().count('"train"') >= rows):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(int(worker.read_text()), signal.SIGKILL)


@pytest.mark.parametrize("kind", ["ddp", pytest.param("fsdp", marks=pytest.mark.long)])
def test_ends_as_if_no_process_had_died(kind, settings, trained, tmp_path):
    plan = {"slow.steps": 16, "slow.save_every": 4, "slow.eval_every": 0, "slow.average": 0.9}
    changed = settings(**plan, **{"distributed.kind": kind})
    runs = {name: tmp_path / name for name in ("undisturbed", "killed")}
    for name, out in runs.items():
        folder = tmp_path / f"{name} workers"
        folder.mkdir()
        words = ["train", "--data", trained / "data", "--out", out, "--resume", *changed]
        killer = threading.Thread(target=kill_when, args=(out / "metrics.jsonl", 6, folder / "1"))
        if name == "killed":
            killer.start()
        launch(words, folder, restarts=3)
        if name == "killed":
            killer.join(PATIENCE)
        assert (folder / "starts").read_text() == ("xx" if name == "undisturbed" else "xxxx")
    for file in ("model.safetensors", "trainer.safetensors"):
        weights, others = (load_file(out / file) for out in runs.values())
        assert weights.keys() == others.keys()
        assert all(torch.equal(value, others[key]) for key, value in weights.items()), file
