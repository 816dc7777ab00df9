"""`guides`, `objectives` and `compare`, for people and for programs, interrupted or not."""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import signal
import sys
import time

import pytest
from pyro_ltm_cli.commands.compare import WIDE

from pyro_ltm.inference import FAMILIES
from pyro_ltm.objectives import OBJECTIVES
from pyro_ltm.optimizers import OPTIMIZERS
from pyro_ltm.optimizers.slow import SLOW_OPTIMIZERS
from pyro_ltm.priors import PRIORS

PATIENCE = 100.0
"""Seconds until something that should have happened counts as failed."""

AXES = {
    "guides": FAMILIES,
    "priors": PRIORS,
    "objectives": OBJECTIVES,
    "optimizers": OPTIMIZERS,
    "slow-optimizers": SLOW_OPTIMIZERS,
}
SCORED = ["--sequences", 6, "--particles", 3, "--batch-size", 4]
PAIRS = ["--guides", "mean-field,delta", "--objectives", "analytic-elbo,map"]


@pytest.mark.parametrize("axis", AXES)
def test_lists(axis, ask, invoke):
    described = ask(axis)[axis.replace("-", "_")]
    assert [entry["name"] for entry in described] == list(AXES[axis])
    shown = " ".join(invoke(axis).stdout.split())
    for entry in described:
        card = AXES[axis][entry["name"]].card
        assert (entry["summary"], entry["reference"]) == (card.summary, card.reference)
        assert entry["options"].keys().isdisjoint({"thoughts", "dim", "layers", "seed"})
        for text in (entry["name"], card.summary, card.cost, card.when, card.reference):
            assert " ".join(text.split()) in shown
        arguments = {place.lower() for place in entry["usage"].replace("[", "").replace("]", "").split(":")[1:]}
        assert arguments <= set(entry["options"])
    assert all(len(line) <= 110 for line in invoke(axis).stdout.splitlines())


@pytest.fixture(scope="module")
def compared(invoke, trained, tmp_path_factory):
    """A comparison under `trained`, and what the command printed; do not write to it."""
    out = tmp_path_factory.mktemp("compared") / "c"
    result = invoke("compare", trained, *PAIRS, "--fast-steps", "2,4", *SCORED, "--out", out)
    assert result.exit_code == 0, result.stderr
    return out, result


def test_chains_of_samplers(ask, invoke, trained, tmp_path):
    pytest.importorskip("arviz_stats")
    words = ["compare", trained, "--guides", "mala:chains=2,delta", "--objectives", "map", "--fast-steps", 8, "--rhat"]
    words += ["--sequences", 3, "--particles", 2, "--out", tmp_path / "c"]
    found = {pair["guide"]: pair["convergence"] for pair in ask(*words)["pairs"]}
    assert found["delta"] is None
    assert (found["mala:chains=2"]["chains"], found["mala:chains=2"]["draws"]) == (2, 4)
    assert len(found["mala:chains=2"]["rhat_by_sequence"]) == 3
    assert "of 2 x 4 draws" in invoke(*words).stdout


def test_for_people(compared):
    out, result = compared
    for expected in (
        "Upper bounds on nats a token, 6 sequences",
        "mean-field",
        "Lowest bound: mean-field with analytic",
    ):
        assert expected in result.stdout
    assert "does not fit" in result.stdout
    assert f"Open {out / 'compare.html'} in a browser" in result.stdout
    assert max(map(len, result.stdout.splitlines()[:9])) <= 100
    assert "mean-field × analytic-elbo, 4 steps (2/4): 6/6 sequences" in result.stderr
    assert {path.name for path in out.iterdir()} == {"compare.html", "compare.json", "compare.csv", "plots"}
    assert WIDE <= 100


def test_for_programs(compared, ask, trained):
    out, _ = compared
    before = json.loads((out / "compare.json").read_text())
    answer = ask("compare", trained, *PAIRS, "--fast-steps", "2,4", *SCORED, "--out", out)
    assert answer["pairs"] == before["pairs"], "all of it was scored already"
    assert [row["guide"] for row in answer["pairs"]] == ["mean-field", "mean-field", "delta", "delta"]
    first = answer["pairs"][0]
    assert first["fast_steps"] == 2
    for name in ("elbo", "iwae", "difference_to_best"):
        assert set(first[name]) == {"nats_per_token", "stderr", "blocks"}
    for name in ("ess", "rate", "distortion", "ms_per_fast_step", "peak_memory_bytes", "ms_per_sequence_to_1pct"):
        assert first[name] is not None
    assert [point["steps"] for point in first["curve"]] == [0, 1, 2]
    assert answer["pairs"][2]["elbo"] is None
    assert {(row["guide"], row["objective"]) for row in answer["refused"]} == {
        ("mean-field", "map"),
        ("delta", "analytic-elbo"),
    }
    assert answer["about"]["run"] == str(trained)
    assert answer["about"]["command"].startswith(f"pyro-ltm compare {trained} --guides mean-field,delta")
    assert (answer["out"], answer["page"]) == (str(out), str(out / "compare.html"))
    assert len(list(csv.DictReader((out / "compare.csv").read_text().splitlines()))) == 4


def test_the_figure_is_that_of_evaluate(compared, ask, trained):
    """The run's own guide and objective, the same sequences: `evaluate` says the same."""
    found = json.loads((compared[0] / "compare.json").read_text())["pairs"][0]
    bound = ask("evaluate", trained, "--sequences", 6, "--particles", 3, "--fast-steps", 2)["bound"]
    assert found["elbo"]["nats_per_token"] == pytest.approx(bound["nats_per_token"], rel=1e-6)
    assert found["elbo"]["stderr"] == pytest.approx(bound["nats_per_token_stderr"], rel=1e-6)
    assert found["rate"] == pytest.approx(bound["kl_nats_per_sequence"], rel=1e-5)


def test_more_pairs_are_added(compared, ask, trained, tmp_path):
    out = shutil.copytree(compared[0], tmp_path / "c")
    command = ["compare", trained, "--guides", "mean-field", "--fast-steps", "2", *SCORED, "--out", out]
    answer = ask(*command, "--objectives", "analytic-elbo,elbo")
    assert len(answer["pairs"]) == 5
    assert answer["pairs"][-1]["objective"] == "elbo"


def test_other_text_and_another_fast_loop(ask, trained, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("kalo mi ter son\n" * 20)
    command = ["compare", trained, "--guides", "mean-field", "--objectives", "elbo", "--data", other, *SCORED]
    answer = ask(*command, "--out", tmp_path / "c", "--set", "fast.steps=3", "--set", "optimizer.lr=0.1", "--seed", 5)
    assert answer["about"]["data"] == str(other)
    assert answer["pairs"][0]["fast_steps"] == 3
    assert answer["settings"]["seed"] == 5
    assert "lr=0.1" in answer["settings"]["optimizer"]


def timeless(folder):
    """All figures but what a clock or an allocator says."""
    rows = json.loads((folder / "compare.json").read_text())["pairs"]
    for row in rows:
        for name in [name for name in row if name.startswith("ms_") or name.endswith(("_bytes", "_seconds"))]:
            del row[name]
        row["curve"] = [{**point, "ms": None} for point in row["curve"]]
    return rows


def pairs_in(out):
    try:
        return len(json.loads((out / "compare.json").read_text())["pairs"])
    except FileNotFoundError:
        return 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", ["SIGINT", pytest.param("SIGKILL", marks=pytest.mark.long)])
def test_interrupted_it_goes_on(number, compared, invoke, fork, trained, tmp_path):
    out = tmp_path / "a folder" / "c"
    command = ["compare", trained, *PAIRS, "--fast-steps", "2,4", *SCORED, "--out", out]
    process = fork(*command, ignore=(ResourceWarning,))  # of a file opened as it came
    deadline = time.monotonic() + PATIENCE
    while not pairs_in(out):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(getattr(signal, number))
    _, err = process.communicate(timeout=PATIENCE)
    kept = json.loads((out / "compare.json").read_text())["pairs"]
    if number == "SIGINT":
        assert process.returncode == 130, err
        assert "Traceback" not in err
        line = err.splitlines()[-1]
        assert line.startswith("Stopped: interrupted; what is scored is in ")
        called, *command = shlex.split(line.partition("go on with: ")[2])
        assert called == "pyro-ltm"
    assert not (out / "compare.html").exists()
    result = invoke(*command)
    assert result.exit_code == 0, result.stderr
    assert timeless(out) == timeless(compared[0])
    rows = json.loads((out / "compare.json").read_text())["pairs"]
    assert rows[: len(kept)] == [
        row | {"difference_to_best": rows[i]["difference_to_best"]} for i, row in enumerate(kept)
    ]


@pytest.fixture(scope="module")
def training(settings, trained):
    """`training(out)`: the arguments of a comparison of two trained decoders and both rivals."""
    changed = settings(**{"slow.steps": 4, "slow.save_every": 2})
    return lambda out: [
        *("compare", "--train", "--data", trained / "data", *changed, *PAIRS, *SCORED),
        *("--twin", "--masked-diffusion", "--fast-steps", 1, "--out", out),
    ]


@pytest.fixture(scope="module")
def trained_pairs(invoke, training, tmp_path_factory):
    """What that leaves, and what the command printed; do not write to it."""
    out = tmp_path_factory.mktemp("trained") / "c"
    result = invoke(*training(out))
    assert result.exit_code == 0, result.stderr
    return out, result


def test_training(trained_pairs, ask, invoke, training):
    out, result = trained_pairs
    for expected in (
        "= time",
        "trained",
        "twin",
        "The masked diffusion: at most",
        "At equal seconds",
        "scored by a mean-field fit",
    ):
        assert expected in result.stdout
    assert "Training: delta × map (2/2)" in result.stderr
    answer = ask(*training(out))
    assert [row["guide"] for row in answer["pairs"]] == ["mean-field", "delta"]
    assert answer["pairs"][0]["training"]["steps"] == 4
    assert answer["pairs"][0]["equal_seconds"]["limit_seconds"] > 0
    for name in ("twin", "masked_diffusion"):
        assert answer[name]["elbo"]["nats_per_token"] > 0
        assert answer[name]["training"]["steps"] == 4
    assert answer["masked_diffusion"]["iwae"] == answer["masked_diffusion"]["elbo"]
    runs = {path.name for path in (out / "runs").iterdir()}
    assert runs == {"delta--map", "mean-field--analytic-elbo", "twin", "masked-diffusion"}
    assert "with slow.lr = " in invoke(*training(out), "--set", "slow.lr=0.5").stderr


def die_while_the_second_pair_is_trained():
    """In a new process: between its checkpoints of steps 2 and 4."""
    from pyro_ltm.runs.metrics import MetricsLog

    write = MetricsLog.write

    def write_and_die(self, kind, row):
        write(self, kind, row)
        if kind == "train" and row["step"] == 3 and self.path.parent.name == "delta--map":
            os.kill(os.getpid(), signal.SIGKILL)

    MetricsLog.write = write_and_die


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_killed_while_it_trains_it_goes_on(trained_pairs, training, invoke, fork, tmp_path):
    out = tmp_path / "c"
    process = fork(*training(out), first=die_while_the_second_pair_is_trained)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGKILL
    assert pairs_in(out) == 1
    assert not (out / "compare.html").exists()
    result = invoke(*training(out))
    assert result.exit_code == 0, result.stderr
    assert "Training: delta × map (2/2)" in result.stderr
    assert "Training: mean-field" not in result.stderr
    for row, undisturbed in zip(timeless(out), timeless(trained_pairs[0]), strict=True):
        assert row["elbo"] == undisturbed["elbo"]
        assert row["nats_by_sequence"] == undisturbed["nats_by_sequence"]
        assert row["training"]["tokens"] == undisturbed["training"]["tokens"]
    for name in ("delta--map", "mean-field--analytic-elbo", "twin", "masked-diffusion"):
        files = [folder / "runs" / name / "model.safetensors" for folder in (out, trained_pairs[0])]
        assert files[0].read_bytes() == files[1].read_bytes(), name


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "give either RUN or --train"),
        (["run", "--train"], "give either RUN or --train"),
        (["run", "--steps", "3"], "--steps goes with --train alone"),
        (["run", "--preset", "nano"], "--preset goes with --train alone"),
        (["run", "--twin"], "--twin goes with --train alone"),
        (["run", "--masked-diffusion"], "--masked-diffusion goes with --train alone"),
        (["--train", "--guide-steps", "3"], "--guide-steps goes with RUN alone"),
        (["--train", "--rhat"], "--rhat goes with RUN alone"),
        (["--train", "--fast-steps", "3,4"], "--train takes one number of --fast-steps"),
        (["run", "--fast-steps", "3,x"], "'3,x' is no list of whole numbers, such as 4,16"),
        (["run", "--fast-steps", "-1"], "each from 0 to 65536"),
        (["run", "--particles", "0"], "'--particles': 0 is not in the range"),
        (["run", "--data", "a", "--data", "b"], "RUN takes one --data"),
    ],
)
def test_bad_usage(arguments, expected, invoke, refused):
    result = invoke("compare", *arguments, *PAIRS, "--out", "nowhere")
    line = refused(result.exit_code, result.stdout, result.stderr, expected, "(see pyro-ltm compare --help)")
    assert result.stderr == line + "\n"


def test_bad_input(refuse, trained, twin, compared, text, tmp_path):
    def refuse_compare(*arguments, says, guides="mean-field", objectives="elbo", out=tmp_path / "c"):
        refuse("compare", *arguments, "--guides", guides, "--objectives", objectives, "--out", out, says=says)

    refuse_compare(trained, guides="mean-feild", says=("did you mean 'mean-field'?",))
    refuse_compare(trained, "--rhat", guides="mean-field,svgd", says=("rhat: none of these guides draws chains",))
    refuse_compare(trained, guides=",", says=("no guide named", "mean-field"))
    refuse_compare(trained, objectives="elbo,elbow", says=("unknown objective 'elbow'",))
    refuse_compare(trained, objectives="elbo:many", says=("objective 'elbo:many'", "a whole number"))
    refuse_compare(trained, objectives="elbo:0", says=("particles = 0",))
    refuse_compare(
        trained, guides="delta", objectives="elbo", says=("no guide fits an objective", "Delta has no density")
    )
    refuse_compare(tmp_path / "no", says=("not a run folder",))
    refuse_compare(twin, says=("no thoughts",))
    refuse_compare(trained, "--data", tmp_path / "no.txt", says=("no such file",))
    refuse_compare(trained, "--set", "slow.lr=1", says=("only the fast loop can change",))
    refuse_compare(trained, "--set", "fast.stepps=1", says=("did you mean 'steps'?",))
    refuse_compare(trained, out=text, says=("is a file",))
    refuse_compare(trained, out=trained, says=("holds something else",))
    refuse_compare(trained, out=compared[0], says=("its comparison was made with", "sequences"))
    refuse_compare("--train", says=("nothing to train on",))
    refuse_compare("--train", "--data", trained / "data", "--preset", "nanno", says=("did you mean 'nano'?",))
    refuse_compare("--train", "--data", trained / "data", "--steps", 0, says=("--steps", "slow.steps = 0"))
    refuse_compare("--train", "--data", trained / "data", "--device", "cude", says=("--device cude",))
    refuse_compare("--train", "--data", trained / "data", out=compared[0], says=("holds a comparison of posteriors",))
    refuse_compare("--train", "--data", tmp_path / "no.txt", says=("no such file",))
