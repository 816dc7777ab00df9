"""`pyro-ltm plan`: each figure of a plan has its row, whatever it was asked for with."""

from __future__ import annotations

import json
import re

import pytest

from pyro_ltm.profiling import plan as module
from pyro_ltm.profiling.simulation import FAST, FIT, GRADIENTS, LEARN, SLOW, WEIGHTS, Simulation


@pytest.fixture
def _simulated(monkeypatch):
    def simulated(config, device):
        size = config.slow.batch_size
        parts = {FAST: {WEIGHTS: 10**9, FIT: 10**9}, SLOW: {WEIGHTS: 10**9, GRADIENTS: 10**9, LEARN: size * 10**9}}
        return Simulation(parts, (10**9,), 10**9, size * 10**12, size * 2 * 10**12, 4, is_recorded=False)

    monkeypatch.setattr(module, "simulate", simulated)


def rows(shown):
    """The cells of each row by its name."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in shown.splitlines()]
    return {name: rest for name, *rest in lines if rest}


def test_of_this_machine(invoke, settings):
    """By hand at once: the tables of a step that is really simulated, at a rate that is really measured."""
    result = invoke("plan", *settings(), "--devices", "1xcpu", "--measure")
    assert result.exit_code == 0, result.stderr
    found = rows(result.stdout)
    assert set(found) > {"weights", "gradients", "slow optimizer: exp_avg", "all of it", "tokens a second"}
    assert "it fits into 90% of cpu's" in result.stdout
    assert "measured on this machine's cpu" in result.stdout
    assert found["copy that checkpoints are written from"] == [found["copy that checkpoints are written from"][0]] * 3
    assert "sent in a step" not in result.stdout, "by nobody to nobody"


@pytest.mark.usefixtures("_simulated")
def test_each_figure_has_its_row(invoke, settings):
    shape = settings(**{"slow.batch_size": 4, "slow.accumulate": 2, "slow.steps": 1000, "fast.steps": 4})
    how = ("--devices", "4xH100", "--rate", "1000", "--price", "2", "--link-rate", "3")
    result = invoke("plan", *shape, *how)
    assert result.exit_code == 0, result.stderr
    found = rows(result.stdout)
    tokens = 8 * 32
    assert found["weights"] == ["1.0 GB", "1.0 GB"]
    assert found["all of it"] == ["3.0 GB", "4.0 GB"]
    assert found["ddp"] == ["4.0 GB", "yes", "1.5 GB", "500 ms"]
    assert found["fsdp"][1:] == ["yes", "1.5 GB", "500 ms"]
    assert found["a slow step, on each device"] == ["1 micro-batch of 2 sequences"]
    assert found["operations of a fast step, of a micro-batch"] == ["2 TFLOP"]
    assert found["tokens in a slow step"] == [f"{tokens:,}"]
    assert found["seconds of a slow step with its fast steps"] == [f"{(tokens / 4 / 1000 + 0.5) * 1000:.3g} ms"]
    assert "1,000 tokens a second and device, as given" in result.stdout
    seconds = 1000 * (tokens / 4 / 1000 + 0.5)
    assert "from a copy of 1.0 GB in the first process's main memory" in result.stdout
    assert found["cost"] == [f"{2 * 4 * seconds / 3600:.2f}"]


@pytest.mark.usefixtures("_simulated")
def test_json_has_all_of_it_and_epochs_of_data(ask, settings, trained):
    found = ask("plan", *settings(), "--data", trained / "data", "--devices", "2x4090", "--tokens", 1e6)
    meta = json.loads((trained / "data" / "meta.json").read_text())
    assert found["epochs"] == pytest.approx(found["tokens"] / meta["splits"]["train"]["tokens"])
    assert found["tokens"] == pytest.approx(1e6, rel=1e-3)
    assert found["device"]["source"].startswith("data sheet")
    assert set(found["sharings"]) == {"ddp", "fsdp"}


@pytest.mark.usefixtures("_simulated")
def test_what_would_fit_is_said(invoke, settings, trained):
    run = ("plan", "--config", trained, *settings(**{"slow.batch_size": 4}))
    assert (
        "This would: --set slow.batch_size=2 --set slow.accumulate=2"
        in invoke(*run, "--devices", "1xH100", "--device-memory", "4.5").stdout
    )
    assert "neither do smaller micro-batches" in invoke(*run, "--devices", "1xH100", "--device-memory", "1").stdout
    unknown = invoke(*run, "--devices", "2xMI300X", "--device-memory", "192")
    assert "operations a second of MI300X are not known: give a rate" in unknown.stdout
    known = invoke(*run, "--devices", "2xMI300X", "--device-memory", "192", "--device-flops", "1307")
    assert "11% of 1,307 TFLOP/s in float32" in known.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--devices", "8xH10"), "unknown device 'H10'"),
        (("--devices", "many"), "unknown device 'many'"),
        (("--devices", "0xH100"), "8xH100"),
        (("--devices", "99999999999xH100"), "at most 999,999"),
        (("--devices", "64xH100"), "64 processes for the 4 sequences"),
        (("--devices", "1xH100", "--rate", "1", "--measure"), "give one of them"),
        (("--devices", "1xH100", "--measure"), "H100 is none: give --rate"),
        (("--devices", "1xH100", "--utilisation", "2"), "2"),
        (("--devices", "1xH100", "--data", "nowhere"), "nowhere"),
        (("--devices", "1xH100", "--preset", "huge"), "huge"),
        (("--devices", "1xH100", "--set", "guide.name=nothing"), "nothing"),
        ((), "--devices"),
    ],
)
def test_bad_input_is_one_line(arguments, says, refuse, settings):
    refuse("plan", *settings(), *arguments, says=(says,), quiet=False)
