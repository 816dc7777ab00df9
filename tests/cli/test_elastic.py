"""A process that dies is started again with all others, and the run ends as if nothing had happened.

By torch's own agent, the one in `torchrun`, in this process; its workers are forked, which saves the seconds of their
imports. `test_launcher.py` has the same by `torchrun` itself.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.ranks import call_command, call_command_and_end, free_port
from safetensors.torch import load_file
from torch.distributed.elastic.multiprocessing.api import SignalException
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


def launch(words: list[object], folder: Path, restarts: int = 0, call: Callable[..., None] = call_command) -> None:
    """Two workers that run the command; each writes its process id and exit code into the folder."""
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
    elastic_launch(config, call)([str(word) for word in words], folder)


def send_when(metrics: Path, rows: int, number: int, process: Callable[[], int]) -> None:
    """Sends a signal to a process, named at that moment, as soon as so many steps are taken."""
    deadline = time.monotonic() + PATIENCE
    while not (metrics.exists() and metrics.read_text().count('"train"') >= rows):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process(), number)


def pid_in(file: Path) -> int:
    return int(file.read_text())


def test_a_signal_to_the_agent_saves(settings, text, tmp_path):
    """It hands it on to its workers, and ends with an error of its own. They end well within the 30 s till it kills.

    They are in a step that takes minutes, after three of the decoder alone. A validation would take as long.
    """
    out = tmp_path / "run"
    plan = {"fast.steps": 65_536, "slow.accumulate": 16, "slow.decoder_warmup": 0.5, "slow.steps": 6}
    plan["data.validation_fraction"] = 0
    words = ["train", "--data", text, "--out", out, *settings(**plan)]
    sender = threading.Thread(target=send_when, args=(out / "metrics.jsonl", 3, signal.SIGTERM, os.getpid))
    sender.start()
    with pytest.raises(SignalException, match="got signal: 15"):
        launch(words, tmp_path, call=call_command_and_end)
    sender.join(PATIENCE)
    assert [(tmp_path / f"{rank} ended").read_text() for rank in (0, 1)] == ["0", "0"]
    assert read_metrics(out / "metrics.jsonl")[-1]["step"] == 3
    assert "Stopped: at step 3 of 6; everything is saved; go on with" in (tmp_path / "0 said").read_text()


@pytest.mark.parametrize(
    ("kind", "rank"),
    [("ddp", 0), *(pytest.param(*other, marks=pytest.mark.long) for other in (("ddp", 1), ("fsdp", 0), ("fsdp", 1)))],
)
def test_ends_as_if_no_process_had_died(kind, rank, settings, trained, tmp_path):
    """The first is the one that writes."""
    plan = {"slow.steps": 16, "slow.save_every": 4, "slow.eval_every": 0, "slow.average": 0.9}
    changed = settings(**plan, **{"distributed.kind": kind})
    runs = {name: tmp_path / name for name in ("undisturbed", "killed")}
    for name, out in runs.items():
        folder = tmp_path / f"{name} workers"
        folder.mkdir()
        words = ["train", "--data", trained / "data", "--out", out, "--resume", *changed]
        killer = threading.Thread(
            target=send_when, args=(out / "metrics.jsonl", 6, signal.SIGKILL, partial(pid_in, folder / f"{rank}"))
        )
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
