"""`pyro-ltm evaluate --protocol`, on a world, where the floor is known."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

from pyro_ltm.config import apply_settings
from pyro_ltm.digests import without_digest
from pyro_ltm.runs import Run
from pyro_ltm.runs.evaluation_file import merged
from pyro_ltm.runs.folder import FORMAT
from pyro_ltm.runs.twin import training_differences


@pytest.fixture(scope="module")
def worldly(invoke, settings, tmp_path_factory):
    """A run trained on a small world, and its twin."""
    folder = tmp_path_factory.mktemp("world")
    source = "worlds:size=2,length=3,documents=60"
    runs = []
    shape = {"data.sequence_length": 160, "model.max_length": 160}  # a document is one sequence
    for name, changes in (("ltm", shape), ("twin", shape | {"model.thoughts": 0})):
        data = source if name == "ltm" else folder / "ltm" / "data"
        result = invoke("train", "--data", data, "--out", folder / name, *settings(**changes))
        assert result.exit_code == 0, result.stderr
        assert ("bound" in result.stderr) == (name == "ltm"), "a likelihood without thoughts is exact"
        runs.append(folder / name)
    return runs


@pytest.mark.usefixtures("with_extras")
def test_every_protocol_has_its_own_key(ask, worldly):
    ltm, twin = worldly
    options = ["--data", "worlds:documents=6", "--particles", 4, "--ais", 2]
    found = ask("evaluate", ltm, "--protocol", "all", "--twin", twin, *options)
    for name in ("bound", "prefix", "reference", "twin", "floor"):
        assert found[name]["nats_per_token"] > 0, name
    assert set(found["bound"]["ais"]) == {"prior", "q"}
    assert [point["particles"] for point in found["bound"]["iwae_curve"]] == [1, 2, 4]
    assert found["reference"]["is_bound"] is False
    assert "NOT a bound" in found["reference"]["label"]
    assert "reference" not in found["above_floor"], "nothing is said of what is no bound"
    assert found["above_floor"]["bound"]["nats_per_token"] > 0
    assert set(found["below_twin"]) >= {"bound", "importance-weighted", "AIS from q", "prefix"}
    ways = found["closed"]
    assert set(ways) >= {"bound", "importance-weighted", "AIS from q", "prefix"}
    for name, way in ways.items():
        whole = found["below_twin"][name]["nats_per_token"] + found["above_floor"][name]["nats_per_token"]
        assert way["share"] == pytest.approx(found["below_twin"][name]["nats_per_token"] / whole, rel=1e-6)
        assert way["stderr"] > 0
    assert found["twin"]["differs"] == [], "the same tokens in the same order"
    assert all(after["tokens"] for after in found["prefix"]["by_prefix"]), (
        "of documents, not of what fills sequences up"
    )
    assert not (ltm / "evaluation.json").exists(), "not its own data"


def test_protocols_are_never_mixed(ask, invoke, worldly):
    ltm, _ = worldly
    for name in ("bound", "prefix", "reference"):
        found = ask("evaluate", ltm, "--protocol", name, "--sequences", 3)
        assert [key for key in ("bound", "prefix", "reference") if key in found] == [name]
    result = invoke("evaluate", ltm, "--protocol", "all", "--sequences", 3)
    progress = [line for line in result.stderr.splitlines() if "sequences  " in line]
    assert [line.split(":")[0] for line in progress] == [
        "evaluate bound",
        "evaluate prefix",
        "evaluate reference, not a bound",
    ]
    assert not any("bound" in line.split(":")[1] for line in progress)
    table = result.stdout
    for heading in ("Upper bound on nats", "Predictive", "NOT a bound", "Above the floor", "above the floor"):
        assert heading in table
    assert json.loads((ltm / "evaluation.json").read_text())["floor"]["combinations"] == 32
    assert (ltm / "plots" / "bounds.png").exists()


def test_a_protocol_does_not_erase_another(ask, worldly, tmp_path):
    run = shutil.copytree(worldly[0], tmp_path / "run", ignore=shutil.ignore_patterns("evaluation.json", "*.png"))

    def kept():
        return without_digest(json.loads((run / "evaluation.json").read_text()))

    options = ["--sequences", 3, "--twin", worldly[1]]
    bound = ask("evaluate", run, *options)
    reference = ask("evaluate", run, "--protocol", "reference", "--sequences", 3)
    assert (kept()["bound"], kept()["reference"]) == (bound["bound"], reference["reference"])
    assert kept()["below_twin"] == bound["below_twin"]
    prefix = ask("evaluate", run, "--protocol", "prefix", *options)
    assert kept()["below_twin"] == bound["below_twin"] | prefix["below_twin"]
    assert kept()["twin"]["prefix"] == prefix["twin"]["prefix"]
    assert (run / "plots" / "importance.png").exists()
    page = ask("report", run, "--sequences", 4)["page"]
    with open(page, encoding="utf-8") as file:
        html = file.read()
    assert "below the twin" in html
    assert "above the floor" in html
    assert "of the way" in html
    assert html.count("data:image/png") >= 2 + len(list((run / "plots").glob("*.png")))
    again = ask("evaluate", run, "--protocol", "reference", "--sequences", 2)
    assert kept() == again, "of other sequences: nothing of it belongs beside the older figures"
    assert not (run / "plots" / "importance.png").exists()


def test_the_floor_after_a_beginning_stays_beside_its_figures():
    common = {"data": "worlds", "fingerprint": "a"}
    one = {"sequences": 3, "tokens": 30}
    prefix = common | {"prefix": one, "floor": {"nats_per_token": 1.0, "by_prefix": [{"prefix": 3}]}}
    prefix["closed"] = {"prefix": {"share": 0.5}, "after 3 tokens": {"share": 0.6}}
    bound = common | {
        "bound": one,
        "floor": {"nats_per_token": 1.0, "by_prefix": []},
        "closed": {"bound": {"share": 0.4}},
    }
    both = merged(prefix, bound)
    assert both["floor"] == prefix["floor"]
    assert both["closed"] == prefix["closed"] | bound["closed"]
    assert merged(bound, prefix)["floor"] == prefix["floor"]


def test_figures_of_two_precisions_do_not_stand_side_by_side(ask, worldly):
    run, _ = worldly
    few = ("--sequences", 2, "--fast-steps", 1)

    def kept(protocol, *more):
        ask("evaluate", run, "--protocol", protocol, *few, *more)
        return json.loads((run / "evaluation.json").read_text())

    kept("bound", "--particles", 2)
    both = kept("prefix", "--particles", 2)
    assert {"bound", "prefix"} <= both.keys()
    assert both["dtype"] == "float32"
    half = kept("reference", "--dtype", "bfloat16")
    assert half["dtype"] == "bfloat16"
    assert not {"bound", "prefix"} & half.keys()


def test_what_else_sets_a_twin_apart_is_said(ask, invoke, worldly, tmp_path):
    ltm, twin = (Run.load(folder) for folder in worldly)
    assert training_differences(ltm, twin) == []
    for other, says in (
        (replace(twin, step=2), "it has read 8 sequences where this run has read 16"),
        (replace(twin, config=apply_settings(twin.config, ["slow.lr=0.5"])), "its slow.lr is 0.5"),
        (replace(twin, config=apply_settings(twin.config, ["seed=7"])), "its seed is 7"),
        (replace(twin, folder=tmp_path), None),  # it does not say what data it was trained on
    ):
        assert (says or "") in " ".join(training_differences(ltm, other))
    other = shutil.copytree(worldly[1], tmp_path / "twin")
    (other / "data.json").write_text(json.dumps({"folder": "data", "fingerprint": "0"}))
    weights = other / "model.safetensors"
    # As an earlier release wrote them: they do not say of which run they are.
    save_file(load_file(weights), weights, metadata={FORMAT: json.dumps({"step": twin.step})})
    options = ["evaluate", worldly[0], "--twin", other, "--sequences", 3]
    assert ask(*options)["twin"]["differs"] == ["it was trained on other data"]
    assert "thoughts are not all that sets run and twin apart" in invoke(*options).stderr


def test_a_world_without_its_floor_says_so(ask, invoke, worldly):
    options = ["evaluate", worldly[0], "--data", "worlds:length=20,documents=3"]
    found = ask(*options)
    assert "floor" not in found
    assert "longer than a sequence of 160 tokens" in found["no_floor"]
    assert "No floor stands below these figures: some of its documents are longer" in invoke(*options).stdout


def test_documents_of_a_world_are_new_ones(ask, worldly):
    ltm, _ = worldly
    found = ask("evaluate", ltm, "--data", "worlds:documents=5", "--particles", 1)
    assert found["bound"]["sequences"] == 5
    assert found["floor"]["combinations"] == 32, "of the size that the run was trained on"


def test_a_better_loop_makes_the_bound_tighter(ask, refuse, worldly):
    ltm, _ = worldly
    options = ["evaluate", ltm, "--sequences", 3, "--fast-steps", 30]
    loose = ask(*options, "--set", "optimizer.lr=1e-4")
    tight = ask(*options, "--set", "optimizer.lr=0.1", "--set", "fast.noise=antithetic")
    assert tight["settings"] == ["optimizer.lr=0.1", "fast.noise=antithetic"]
    assert tight["bound"]["nats_per_token"] < loose["bound"]["nats_per_token"] - 0.001
    refuse("evaluate", ltm, "--set", "model.window=3", says=("only the fast loop can change", "optimizer.*"))
    refuse("evaluate", ltm, "--set", "optimizer.lr=-1", says=("lr above 0",))


def test_a_bound_below_the_floor_is_an_error_and_not_a_result(invoke, settings, refuse, tmp_path_factory):
    """A decoder that knows its ten documents by heart stands below their entropy, which holds for new ones."""
    run, source = tmp_path_factory.mktemp("heart") / "run", "worlds:size=2,length=3,documents=10"
    shape = {"data.sequence_length": 160, "model.max_length": 160, "model.window": 160, "model.dim": 32}
    learning = {"data.validation_fraction": 0, "slow.steps": 200, "slow.lr": 0.02, "model.thoughts": 0}
    result = invoke("train", "--data", source, "--out", run, *settings(**shape, **learning))
    assert result.exit_code == 0, result.stderr
    says = ("below the text's own entropy", "no bound can", "trained on?")
    refuse("evaluate", run, "--data", f"{source},seed=0", says=says, quiet=False)
    result = invoke("evaluate", run, "--data", "worlds:documents=10,seed=1")
    assert result.exit_code == 0, "new documents of the same world are not below it"


def test_bad_protocols(refuse, worldly):
    ltm, twin = worldly
    refuse("evaluate", ltm, "--protocol", "prefix", "--prefix", "999", says=("prefix = 999", "leave something"))
    refuse("evaluate", twin, "--protocol", "reference", says=("has no thoughts",))
    refuse("evaluate", twin, "--ais", "2", says=("has no thoughts", "nothing to anneal"))
    for option, theirs, other in (
        ("--ais", "bound", "prefix"),
        ("--stride", "prefix", "bound"),
        ("--prefix", "prefix", "reference"),
        ("--particles", "bound and prefix", "reference"),
    ):
        refuse(
            "evaluate",
            ltm,
            "--protocol",
            other,
            option,
            "3",
            says=(f"{option} is of --protocol {theirs}, not {other}",),
        )
    refuse("evaluate", ltm, "--ais-chains", "2", says=("of --ais N",))
    refuse("evaluate", ltm, "--data", "worlds:sise=3", says=("unknown option 'sise'", "did you mean 'size'"))
