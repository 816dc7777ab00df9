"""`pyro-ltm zero-shot`: real runs on small files of tasks."""

from __future__ import annotations

import csv
import dataclasses
import json
import math

import pytest

from pyro_ltm.data import World
from pyro_ltm.inference.build import build
from pyro_ltm.runs import Run
from pyro_ltm.tasks.zero_shot import score_task


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
    """Also where posteriors are fitted otherwise than in training."""
    options = ["--twin", twin, "--particles", 3, "--set", "optimizer.lr=0.1", "--set", "fast.noise=antithetic"]
    result = ask("zero-shot", trained, tasks, *options, "--only", "part")
    assert result["settings"] == ["optimizer.lr=0.1", "fast.noise=antithetic"]
    found = result["tasks"]["part"]
    plain = ask("evaluate", trained, "--data", tasks.parent / "part.txt", *options)
    for name, other in (("bound", plain["bound"]), ("twin", plain["twin"])):
        for figure in ("nats_per_token", "bits_per_byte"):
            for key in (figure, f"{figure}_stderr"):
                assert found[name][key] == pytest.approx(other[key], rel=1e-6)
    assert found["importance-weighted"]["nats_per_token"] == pytest.approx(plain["bound"]["iwae_nats_per_token"])
    gap, same = found["below_twin"]["bound"], plain["below_twin"]["bound"]
    assert gap == {**same, **{key: pytest.approx(same[key]) for key in ("nats_per_token", "stderr")}}
    text = (tasks.parent / "part.txt").read_text(encoding="utf-8")
    lines = text.count("\n") + (not text.endswith("\n"))
    assert found["words"] == len(text.split()) + lines
    assert found["bytes"] == len(text.encode("utf-8"))
    nats = found["bound"]["nats_per_token"] * found["tokens"]
    assert found["bound"]["word_perplexity"] == pytest.approx(math.exp(nats / found["words"]))
    assert found["bound"]["meaning"].startswith("upper bound on nats")
    assert found["twin"]["meaning"].startswith("exact")
    assert not found["counts_are_estimated"]
    assert not found.keys() & {"floor", "no_floor"}, "of a text whose entropy nobody knows there is nothing to say"


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


def test_tables_and_files(invoke, trained, twin, tasks, tmp_path, monkeypatch):
    for suffix in (".csv", ".json"):
        result = invoke(
            *("zero-shot", trained, tasks, "--twin", twin, "--protocol", "all", "--particles", 2),
            *("--out", tmp_path / f"figures{suffix}"),
        )
        assert result.exit_code == 0, result.stderr
    assert all(line.count("±") == 4 for line in result.stdout.splitlines() if "ELBO" in line), "100 characters hold all"
    for words in ("Upper bound on nats", "Predictive", "part", "cut", "ELBO", "IWAE, 2 draws", "twin", "about"):
        assert words in result.stdout
    rows = list(csv.DictReader((tmp_path / "figures.csv").read_text(encoding="utf-8").splitlines()))
    found = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["tasks"]
    assert [(row["task"], row["figure"]) for row in rows] == [
        (task, figure) for task in ("part", "cut") for figure in ("bound", "importance-weighted", "prefix", "twin")
    ]
    for row in rows:
        for key in ("word_perplexity", "bits_per_byte_stderr"):
            assert float(row[key]) == pytest.approx(found[row["task"]][row["figure"]][key])
    monkeypatch.setenv("COLUMNS", "80")
    narrow = invoke("zero-shot", trained, tasks, "--twin", twin, "--particles", 2, "--sequences", 2).stdout
    assert all(line.count("±") == 3 for line in narrow.splitlines() if "ELBO" in line), "bits a byte alone"


def test_a_run_without_thoughts_is_exact(ask, invoke, twin, tasks):
    found = ask("zero-shot", twin, tasks, "--only", "part")["tasks"]["part"]
    assert "importance-weighted" not in found
    assert found["bound"]["meaning"].startswith("exact")
    assert "Exact: " in invoke("zero-shot", twin, tasks, "--only", "part").stdout


@pytest.fixture(scope="module")
def untaught(trained, tmp_path_factory):
    """An untrained run that reads whole documents of a small world, and its twin."""
    folder, known = tmp_path_factory.mktemp("untaught"), Run.load(trained)
    model = dataclasses.replace(known.config.model, max_length=160)
    config = dataclasses.replace(
        known.config, model=model, data=dataclasses.replace(known.config.data, sequence_length=160)
    )
    for name, one in (("ltm", config), ("twin", dataclasses.replace(config, model=model.twin))):
        Run.create(folder / name, one, *build(one), known.tokenizer)
    return folder / "ltm", folder / "twin"


WORLD = 'source = "worlds:size=2,length=2,documents=6,seed=1"\n'


def test_a_worlds_floor_stands_below_its_figures(ask, invoke, refuse, untaught, tmp_path, monkeypatch):
    run, twin = untaught
    tasks = tmp_path / "tasks.toml"
    tasks.write_text(f'[tasks.world]\n{WORLD}packing = "document"\n', encoding="utf-8")
    found = ask("zero-shot", run, tasks, "--twin", twin, "--particles", 2, "--sequences", 5)["tasks"]["world"]
    world = World(size=2, length=2)
    exact = -sum(world.log_prob(story.text) for story in world.stories(seed=1, count=5))
    floor = found["floor"]
    assert floor["nats_per_token"] * found["tokens"] == pytest.approx(exact)
    assert floor["bits_per_byte"] * found["bytes"] * math.log(2) == pytest.approx(exact)
    assert floor["meaning"].startswith("floor: the text's own entropy")
    assert set(found["above_floor"]) == {"bound", "importance-weighted", "twin"}
    for name, above in found["above_floor"].items():
        assert above["nats_per_token"] == pytest.approx(found[name]["nats_per_token"] - floor["nats_per_token"])
    assert "no_floor" not in found
    shown = invoke("zero-shot", run, tasks, "--particles", 2, "--out", tmp_path / "figures.csv").stdout
    assert "\n  floor " in shown
    assert "world: nats a token above the floor: ELBO " in shown
    assert "world,floor," in (tmp_path / "figures.csv").read_text(encoding="utf-8")
    monkeypatch.setattr(World, "log_prob", lambda self, text: -1e6)
    says = ("tasks.world: bound: ", "below the text's own entropy", "no bound can")
    refuse("zero-shot", run, tasks, "--particles", 2, says=says, quiet=False)


def test_where_a_world_has_no_floor(ask, invoke, untaught, tmp_path):
    ways = {
        "packed": ('packing = "contiguous"', 'set packing = "document"'),
        "changed": ('packing = "document"\ndetokenise = "ptb"', 'detokenise = "ptb" changes its text'),
        "cut": ('packing = "document"\nsequence_length = 16', "longer than a sequence of 16 tokens"),
    }
    tasks = tmp_path / "tasks.toml"
    tables = [f"[tasks.{name}]\n{WORLD}{how}\n" for name, (how, _) in ways.items()]
    tasks.write_text("".join(tables), encoding="utf-8")
    options = ["zero-shot", untaught[0], tasks, "--particles", 1, "--sequences", 2]
    found, shown = ask(*options)["tasks"], invoke(*options).stdout
    for name, (_, why) in ways.items():
        assert "floor" not in found[name]
        assert why in found[name]["no_floor"]
        assert f"{name}: no floor stands below these figures: {found[name]['no_floor']}." in shown


def test_in_python(trained, tasks):
    from pyro_ltm.tasks.text_tasks import load_tasks

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
        (("--set", "slow.lr=1"), "only the fast loop can change"),
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
