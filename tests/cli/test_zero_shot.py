"""`pyro-ltm zero-shot`: real runs on small files of tasks."""

from __future__ import annotations

import csv
import json
import math

import pytest

from pyro_ltm.training import Run
from pyro_ltm.training.zero_shot import score_task


@pytest.fixture(scope="module")
def tasks(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "part.txt").write_text(text.read_text(encoding="utf-8")[:600], encoding="utf-8")
    path = folder / "tasks.toml"
    path.write_text(
        '[tasks.part]\nsource = "part.txt"\nwords = "with-line-ends"\n'
        '[tasks.cut]\nsource = "part.txt"\nsequences = 3\nsequence_length = 16\n',
        encoding="utf-8",
    )
    return path


def test_figures_are_those_of_evaluate(ask, trained, twin, tasks):
    found = ask("zero-shot", trained, tasks, "--twin", twin, "--particles", 3, "--only", "part")["tasks"]["part"]
    plain = ask("evaluate", trained, "--data", tasks.parent / "part.txt", "--twin", twin, "--particles", 3)
    for name, other in (("bound", plain["bound"]), ("twin", plain["twin"])):
        assert found[name]["nats_per_token"] == pytest.approx(other["nats_per_token"], rel=1e-6)
        assert found[name]["nats_per_token_stderr"] == pytest.approx(other["nats_per_token_stderr"], rel=1e-6)
        assert found[name]["bits_per_byte"] == pytest.approx(other["bits_per_byte"], rel=1e-6)
    assert found["importance-weighted"]["nats_per_token"] == pytest.approx(plain["bound"]["iwae_nats_per_token"])
    assert found["below_twin"]["bound"] == pytest.approx(plain["below_twin"]["bound"])
    text = (tasks.parent / "part.txt").read_text(encoding="utf-8")
    lines = text.count("\n") + (not text.endswith("\n"))
    assert found["words"] == len(text.split()) + lines
    assert found["bytes"] == len(text.encode("utf-8"))
    nats = found["bound"]["nats_per_token"] * found["tokens"]
    assert found["bound"]["word_perplexity"] == pytest.approx(math.exp(nats / found["words"]))
    assert found["bound"]["meaning"].startswith("upper bound on nats")
    assert found["twin"]["meaning"].startswith("exact")
    assert not found["counts_are_estimated"]


def test_only_the_first_sequences(ask, trained, tasks):
    found = ask("zero-shot", trained, tasks, "--protocol", "prefix", "--particles", 2, "--stride", 5)["tasks"]
    whole, cut = found["part"], found["cut"]
    assert set(whole) >= {"prefix"}
    assert "bound" not in whole
    assert whole["prefix"]["meaning"].startswith("predictive")
    assert whole["stride"] == 5
    assert (cut["sequences"], cut["tokens"]) == (3, 48)
    assert cut["counts_are_estimated"]
    text = (tasks.parent / "part.txt").read_text(encoding="utf-8")
    share = 48 / whole["tokens"]
    assert cut["words"] == round(len(text.split()) * share)
    assert cut["bytes"] == round(len(text.encode()) * share)
    again = ask("zero-shot", trained, tasks, "--protocol", "prefix", "--particles", 2, "--sequences", 2)["tasks"]
    assert [again[name]["sequences"] for name in ("part", "cut")] == [2, 2]


def test_tables_and_files(invoke, trained, twin, tasks, tmp_path):
    for suffix in (".csv", ".json"):
        result = invoke(
            *("zero-shot", trained, tasks, "--twin", twin, "--protocol", "all", "--particles", 2),
            *("--out", tmp_path / f"figures{suffix}"),
        )
        assert result.exit_code == 0, result.stderr
    for words in ("Upper bound on nats", "Predictive", "part", "cut", "ELBO", "IWAE, 2 draws", "twin", "about"):
        assert words in result.stdout
    rows = list(csv.DictReader((tmp_path / "figures.csv").read_text(encoding="utf-8").splitlines()))
    found = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["tasks"]
    assert [(row["task"], row["figure"]) for row in rows] == [
        (task, figure) for task in ("part", "cut") for figure in ("bound", "importance-weighted", "prefix", "twin")
    ]
    for row in rows:
        assert float(row["word_perplexity"]) == pytest.approx(found[row["task"]][row["figure"]]["word_perplexity"])


def test_a_run_without_thoughts_is_exact(ask, invoke, twin, tasks):
    found = ask("zero-shot", twin, tasks, "--only", "part")["tasks"]["part"]
    assert "importance-weighted" not in found
    assert found["bound"]["meaning"].startswith("exact")
    assert "Exact: " in invoke("zero-shot", twin, tasks, "--only", "part").stdout


def test_in_python(trained, tasks):
    from pyro_ltm.evaluation.tasks import load_tasks

    seen = []

    def counting(name, total):
        return lambda done, nats: seen.append((name, done, total))

    score = score_task(Run.load(trained), load_tasks(tasks)[1], particles=2, counting=counting)
    assert seen[-1] == ("cut: bound", 3, 3)
    assert score.levels["bound"].nats_per_token > 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--only", "prt"), "no task 'prt' (did you mean 'part'?)"),
        (("--out", "figures.txt"), "ends in .json or .csv"),
        (("--out", "nowhere/figures.csv"), "there is no folder"),
        (("--twin", "nowhere"), "nowhere: not a run folder"),
    ],
)
def test_bad_input(refuse, trained, tasks, options, says):
    refuse("zero-shot", trained, tasks, *options, says=(says,))


def test_bad_tasks(refuse, trained, tasks, tmp_path):
    refuse("zero-shot", trained, tmp_path / "none.toml", says=("no such file of tasks",))
    refuse("zero-shot", tmp_path, tasks, says=("not a run folder",))
    (tmp_path / "empty.txt").write_text(" \n", encoding="utf-8")
    (tmp_path / "tasks.toml").write_text('[tasks.a]\nsource = "empty.txt"\n', encoding="utf-8")
    refuse("zero-shot", trained, tmp_path / "tasks.toml", says=("empty.txt: empty",))
    (tmp_path / "tasks.toml").write_text(
        f'[tasks.a]\nsource = "{tasks.parent / "part.txt"}"\nsequence_length = 64\n', encoding="utf-8"
    )
    refuse("zero-shot", trained, tmp_path / "tasks.toml", says=("64 tokens, the model reads at most 32",))
