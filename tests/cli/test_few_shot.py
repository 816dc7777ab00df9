"""`pyro-ltm few-shot`."""

from __future__ import annotations

import pytest

from pyro_ltm.data.in_context import task


@pytest.fixture(scope="module")
def runs(invoke, settings, tmp_path_factory):
    """A run on a task, and its twin, both hardly trained."""
    folder = tmp_path_factory.mktemp("in-context")
    source = "in-context:lookup,shots=4,documents=200"
    for name, changes in (("run", {"slow.steps": 1}), ("twin", {"slow.steps": 1, "model.thoughts": 0})):
        made = invoke("train", "--data", source, "--out", folder / name, *settings(**changes))
        assert made.exit_code == 0, made.stderr
    return folder / "run", folder / "twin"


def test_few_shot(ask, invoke, runs):
    run, twin = runs
    options = ["--twin", twin, "--documents", 6, "--particles", 2]
    found = ask("few-shot", run, *options)
    assert [one["shots"] for one in found["answers"]] == [0, 1, 2, 4]
    assert (found["task"], found["documents"], found["particles"], found["fast_steps"]) == ("lookup", 6, 2, 2)
    assert found["source"] == "in-context:lookup,size=8,shots=4,documents=1000,seed=1000000"
    for one, its, above, best in zip(
        found["answers"], found["twin_answers"], found["above_twin"], found["best"], strict=True
    ):
        assert above["exact_match"] == pytest.approx(one["exact_match"] - its["exact_match"])
        assert best["accuracy"] == pytest.approx(task("lookup").known_after(one["shots"]).accuracy)
        assert one["nats"] > best["nats"]
    again = ask("few-shot", run, *options, "--batch-size", 5)
    assert [one["nats"] for one in again["answers"]] == pytest.approx(
        [one["nats"] for one in found["answers"]], abs=1e-3
    )
    shown = invoke("few-shot", run, *options, "--shots", 1, "--shots", 0).stdout
    for words in ("lookup: 6 documents", "chance is 0.100", "above the twin", "2 fast steps, 2 particles, seed 0"):
        assert words in shown
    other = ask("few-shot", twin, "in-context:copy,shots=1", "--documents", 2, "--fast-steps", 0)
    assert (other["task"], other["twin_answers"], other["particles"]) == ("copy", None, 1)


def test_a_masked_diffusion_fills_its_answers_in(ask, invoke, settings, runs, tmp_path):
    run, twin = runs
    kind = {"slow.steps": 1, "model.kind": "masked-diffusion", "model.thoughts": 0}
    made = invoke("train", "--data", run / "data", "--out", tmp_path / "diffusion", *settings(**kind))
    assert made.exit_code == 0, made.stderr
    words = ("few-shot", tmp_path / "diffusion", "--twin", twin, "--documents", 4, "--shots", 0, "--shots", 2)
    found = ask(*words, "--particles", 2)
    assert [one["shots"] for one in found["answers"]] == [0, 2]
    assert found["particles"] == 2
    assert "the bound of a masked diffusion" in found["meaning"]
    for one, best in zip(found["answers"], found["best"], strict=True):
        assert one["nats"] > best["nats"]
    again = ask(*words, "--particles", 2, "--batch-size", 3)
    assert [one["nats"] for one in again["answers"]] == pytest.approx([one["nats"] for one in found["answers"]])


def test_bad_tasks(refuse, runs, trained):
    run, _ = runs
    refuse("few-shot", trained, says=("was not trained on one task of in-context; name one",))
    refuse("few-shot", run, "--shots", 9, says=("shots = 9: documents of", "have 4"))
    refuse("few-shot", run, "in-context:loockup", says=("did you mean 'lookup'?",))
    refuse("few-shot", run, "worlds", says=("worlds: names no task: in-context:NAME",))
    refuse("few-shot", run, "in-context:copy", says=("shots = 12:", "reads at most 32: fewer shots"))
