"""Run folders that an earlier release wrote: everything still reads them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import click.testing
import pytest
from pyro_ltm_cli.main import cli

from pyro_ltm.errors import UserError
from pyro_ltm.runs import Run
from pyro_ltm.runs.metrics import read_metrics
from pyro_ltm.training import train

FIXTURES = Path(__file__).parent.parent / "fixtures"
FLOAT32 = 1e-5
"""Relative: sums over a few thousand products in another order, after six slow steps and three fast ones."""


@pytest.fixture(params=sorted(path.name for path in FIXTURES.glob("release-*")))
def release(request, tmp_path):
    """The run, its tokens and its file of thoughts, in a temporary folder."""
    return Path(shutil.copytree(FIXTURES / request.param, tmp_path / request.param))


@pytest.fixture
def ask():
    """Calls a command that must succeed with --json, and gives its object."""

    def call(*arguments):
        result = click.testing.CliRunner().invoke(cli, [*map(str, arguments), "--json"])
        assert result.exit_code == 0, f"{result.stderr}{result.exception}"
        return json.loads(result.stdout)

    return call


def test_it_is_evaluated_to_the_same_figures(ask, release):
    before = json.loads((release / "run/evaluation.json").read_text())
    after = ask("evaluate", release / "run", "--particles", 2, "--sequences", 4)
    assert after["fingerprint"] == before["fingerprint"]
    for figure in ("nats_per_token", "distortion_nats_per_token", "iwae_nats_per_token"):
        assert after["bound"][figure] == pytest.approx(before["bound"][figure], rel=FLOAT32)
    # So small a KL is a difference of near numbers.
    assert after["bound"]["kl_nats_per_sequence"] == pytest.approx(before["bound"]["kl_nats_per_sequence"], rel=1e-3)
    counts = ("tokens", "sequences", "particles", "fast_steps", "seed", "guide")
    assert {key: after["bound"][key] for key in counts} == {key: before["bound"][key] for key in counts}


def test_it_goes_on_to_more_steps(ask, release):
    before = Run.load(release / "run")
    result = ask("train", "--out", release / "run", "--resume", "--steps", 8)
    assert (before.step, result["step"]) == (6, 8)
    run = Run.load(release / "run")
    assert run.config.slow.planned == 6
    rows = read_metrics(run.folder / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 9))
    # The share of steps without thoughts is that of the first plan: the new steps have a KL.
    assert all(row["kl_nats_per_sequence"] is not None for row in rows[-3:-1])


def test_its_checkpoint_knows_a_setting_by_the_name_that_it_had(release):
    path = release / "run/config.toml"
    path.write_text(path.read_text().replace("alone = 0.4", "alone = 0.2"))
    with pytest.raises(UserError, match=r"slow\.decoder_warmup was 0\.4; put it back"):
        train(None, data=None, out=release / "run", resume=True)


def test_it_writes_text_from_its_thoughts(ask, release):
    file = release / "thoughts.safetensors"
    found = ask("generate", release / "run", "--thoughts", file, "--max-new-tokens", 4)
    assert found["thoughts"] == "file"
    assert found["texts"]
    assert all(1 <= one["tokens"] <= 4 for one in found["texts"])


def test_it_is_shown_reported_and_compared(ask, release):
    run = release / "run"
    shown = ask("info", run)
    assert (shown["step"], shown["data"]["folder"]) == (6, str(run / "../tokens"))
    assert shown["validation"]["nats_per_token"] == pytest.approx(5.11265199)
    few = ("--sequences", 4, "--particles", 2, "--batch-size", 4)
    assert ask("report", run, *few)["thoughts"]["sequences"] == 4
    assert json.loads((run / "report/report.json").read_text())["step"] == 6
    pair = ("--guides", "mean-field", "--objectives", "analytic-elbo", "--out", release / "comparison")
    assert len(ask("compare", run, *pair, *few)["pairs"]) == 1
