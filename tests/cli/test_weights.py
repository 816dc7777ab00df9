"""`--weights`: the average and the best of a run, by every command that opens one."""

from __future__ import annotations

import pytest

from pyro_ltm.runs import Run


@pytest.fixture(scope="module")
def averaged(invoke, settings, trained):
    """A run that has all three, and what its training said."""
    out = trained.parent / "averaged"
    more = {"slow.average": 0.9, "slow.keep_best": "true", "slow.eval_every": 2}
    result = invoke("train", "--data", trained / "data", "--out", out, *settings(**more))
    assert result.exit_code == 0, result.stderr
    return out, result


def test_training_shows_each(averaged):
    lines = [line for line in averaged[1].stderr.splitlines() if "validation bound" in line]
    assert ["average of weights" in line for line in lines] == [False, True, True]
    assert all(line.endswith("best so far") for line in lines), "an untrained one at first, and it learns"
    assert "the average of its weights (--weights average)" in averaged[1].stdout
    assert "at its best validation, step 4 (--weights best)" in averaged[1].stdout


@pytest.mark.parametrize("weights", ["average", "best"])
def test_an_evaluation_is_of_the_weights_named(ask, averaged, weights):
    run, few = averaged[0], ("--sequences", 4, "--particles", 1)
    last, found = ask("evaluate", run, *few), ask("evaluate", run, "--weights", weights, *few)
    assert "weights" not in last
    assert found["weights"] == weights
    assert found["fingerprint"] == Run.load(run, weights=weights).fingerprint
    same = found["bound"]["nats_per_token"] == last["bound"]["nats_per_token"]
    assert same == (weights == "best")  # which are the last ones, here
    assert Run.load(run).fingerprint in (run / "evaluation.json").read_text()


def test_every_command_that_opens_a_run_opens_them(ask, invoke, averaged, tmp_path):
    run, average = averaged[0], ("--weights", "average")
    few = ("--guides", "mean-field", "--objectives", "elbo", "--sequences", 2, "--particles", 2)
    assert invoke("compare", run, *few, "--out", tmp_path / "compare", *average).exit_code == 0
    assert '"weights": "average"' in (tmp_path / "compare" / "compare.json").read_text()
    thoughts = tmp_path / "thoughts.npz"
    assert ask("infer", run, "--text", "ka lo", "--out", thoughts, *average)["weights"] == "average"
    texts = [ask("generate", run, "--max-new-tokens", 24, "--weights", name)["texts"] for name in ("last", "average")]
    assert texts[0] != texts[1]
    assert ask("reconstruct", run, "--text", "ka lo", *average)["run"] == str(run)


def test_weights_that_a_run_lacks_are_refused(refuse, trained, twin, averaged):
    for weights, key in (("average", "slow.average"), ("best", "slow.keep_best")):
        says = (f"has no {weights} weights, as it was trained without {key}",)
        refuse("generate", trained, "--weights", weights, says=says)
    refuse("evaluate", averaged[0], "--twin", twin, "--weights", "best", says=("twin: has no best weights",))
    refuse("evaluate", trained, "--weights", "beast", says=("'beast' is not one of",))
    train = ("compare", "--train", "--guides", "mean-field", "--objectives", "elbo", "--out", "x", "--data", "y")
    refuse(*train, "--weights", "best", says=("--weights goes with RUN alone",))
