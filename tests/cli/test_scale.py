"""`pyro-ltm scale`: from text to a page; what it takes before; bad input in one line that leaves nothing behind."""

from __future__ import annotations

import csv
import json
import shutil

import pytest

STUDY = {"model.max_length": 32, "slow.steps": 3, "slow.eval_sequences": 2}
SCORED = ("--sequences", "4", "--particles", "2")


@pytest.fixture(scope="module")
def study(invoke, settings, text, tmp_path_factory):
    out = tmp_path_factory.mktemp("studies") / "s"
    axes = ("--axis", "fast.steps=1,2", "--axis", "model.thoughts=0,2")
    result = invoke("scale", "--data", text, "--out", out, *axes, "--equal", "tokens", *SCORED, *settings(**STUDY))
    assert result.exit_code == 0, result.stderr
    return out, result


def test_text_in_and_a_page_out(study):
    out, result = study
    for said in (
        "latent thoughts",
        "family",
        "Cells: 2 latent thoughts, 1 twin.",
        "at equal tokens",
        "Not run: 2 of 4 places of the grid",
        "One seed",
    ):
        assert said in result.stdout
    assert "Cell: ltm--fast.steps=1--seed=0 (2 of 3)" in result.stderr
    found = json.loads((out / "study.json").read_text())
    assert [cell["family"] for cell in found["cells"]] == ["ltm", "ltm", "twin"]
    assert "--resume" in found["about"]["command"]
    assert "sequence_nats" not in found["cells"][0]
    assert len((out / "study.csv").read_text().splitlines()) == 4
    page = (out / "scaling.html").read_text()
    for part in (
        "All cells",
        "Each cell against its rivals",
        "Tokens to reach a level",
        "Not run: 2 of 4 places",
        "The fitted law",
        "none, for",
        "Operations",
        "upper bound",
    ):
        assert part.lower() in page.lower()
    assert {path.name for path in (out / "plots").iterdir()} >= {"by-tokens.png", "by-operations.png", "figures.png"}


def test_goes_on_only_when_asked_to_and_says_what_is_left(study, invoke, ask, settings, text, refused):
    out, _ = study
    words = ("scale", "--data", text, "--out", out, "--equal", "tokens", *SCORED, *settings(**STUDY))
    again = invoke(*words, "--axis", "fast.steps=1,2")
    refused(again.exit_code, again.stdout, again.stderr, f"{out}: already holds a study", "--resume")
    found = ask(*words, "--axis", "fast.steps=1,2,4", "--dry-run", "--device-flops", "1e6", "--device-price", "2")
    assert [one["name"] for one in found["by_cell"]] == ["ltm--fast.steps=4--seed=0"]
    (cell,) = found["by_cell"]
    reseeded = ask(*words, "--set", "seed=3", "--dry-run", "--device-flops", "1e6")
    assert [one["name"] for one in reseeded["by_cell"]] == ["ltm--seed=3", "twin--slow.steps=3--seed=3"]
    operations = cell["training_operations"] + cell["scoring_operations"]
    assert found["hours"] == pytest.approx(operations / 1e6 / 3600)
    assert found["price"] == pytest.approx(2 * found["hours"])
    assert cell["tokens"] == 3 * 4 * 32
    measured = ask(*words, "--axis", "fast.steps=1,4", "--dry-run", "--shard", "2/3")
    assert measured["cells"] == 1
    assert 0 < measured["hours"] < 1


def test_further_figures_have_a_price_and_come_without_training(study, invoke, ask, settings, text, tmp_path):
    out = shutil.copytree(study[0], tmp_path / "s")
    words = ["scale", "--data", text, "--out", out, "--equal", "tokens", "--axis", "fast.steps=1,2"]
    words += [*SCORED, *settings(**STUDY), "--predictive", "--reference-protocol"]
    pace = ["--dry-run", "--device-flops", "1e6"]
    found = ask(*words, *pace)
    assert [one["name"] for one in found["by_cell"]] == ["ltm--fast.steps=1--seed=0", "ltm--seed=0"]
    assert {(one["training_operations"], one["tokens"]) for one in found["by_cell"]} == {(0, 0)}
    less = ask(*words[:-1], *pace)
    assert 0 < less["operations"] < found["operations"]
    fresh = [*words[:4], tmp_path / "t", *words[5:]]
    anew, plain = ask(*fresh, *pace), ask(*fresh[:-2], *pace)
    assert anew["operations"] - plain["operations"] == found["operations"]
    assert "2 cells are trained, and lack figures" in invoke(*words, *pace).stderr
    again = invoke(*words, "--resume")
    assert again.exit_code == 0, again.stderr
    lines = [line for line in again.stderr.splitlines() if line.startswith("Cell: ")]
    assert [line.rpartition(", ")[2] for line in lines] == ["trained before: predictive and reference"] * 2
    assert "step 3/3" not in again.stderr
    assert "which is no bound" in again.stdout
    assert "; predictive " in again.stdout
    page = (out / "scaling.html").read_text()
    for said in ("reference, no bound", "below, predictive", "How much of the scaling is the protocol"):
        assert said in page
    columns, *lines = csv.reader((out / "study.csv").read_text().splitlines())
    for line in lines:
        cell = dict(zip(columns, line, strict=True))
        assert cell["predictive.nats_per_token"]
        assert bool(cell["reference.nats_per_token"]) == (cell["family"] == "ltm")


def test_a_dry_run_on_a_study_says_what_the_study_would(study, invoke, settings, text, refused, tmp_path):
    """Cells of other settings are not done: a price of nothing would be of a call that is refused."""
    out, _ = study
    words = ["scale", "--out", out, "--equal", "tokens", "--axis", "fast.steps=1,4", "--dry-run"]
    pace = ["--device-flops", "1e6"]
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    same = invoke(*words, *pace, "--data", text, *SCORED, *settings(**STUDY))
    assert same.exit_code == 0, same.stderr
    assert f"{out}: already holds a study; go on with it, extend it or join it with --resume" in same.stderr
    assert "already holds" not in invoke(*words, *pace, "--data", text, *SCORED, *settings(**STUDY), "--resume").stderr
    other = tmp_path / "other.txt"
    other.write_text("another text\n" * 300)
    for given, says in (
        (["--data", text, *SCORED, *settings(**STUDY), "--set", "slow.lr=0.5"], "its study was made with slow.lr = "),
        (
            ["--data", text, *SCORED, *settings(**STUDY), "--budget-tokens", "999"],
            "its study was made with budget.tokens",
        ),
        (
            ["--data", text, "--sequences", "3", "--particles", "2", *settings(**STUDY)],
            "made with sequences = 4 and not 3",
        ),
        (["--data", other, *SCORED, *settings(**STUDY)], "holds the tokens of"),
    ):
        for more in ([], pace, ["--resume"]):
            found = invoke(*words, *more, *given)
            refused(found.exit_code, found.stdout, found.stderr, says)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_a_dry_run_says_how_far_it_is(invoke, settings, text, tmp_path):
    """Operations of a large model take minutes to count."""
    axes = ("--axis", "fast.steps=1,2", "--seeds", "0,1")
    found = invoke("scale", "--data", text, "--out", tmp_path / "s", *axes, *settings(**STUDY), "--dry-run")
    assert found.exit_code == 0, found.stderr
    lines = found.stderr.splitlines()
    assert lines[0] == "counting operations: 0/4 cells with their rivals"
    assert "counting operations: 4/4 cells with their rivals" in lines
    assert "Timing steps of the smallest and the largest shape on this machine." in lines
    assert lines[-1].startswith("pricing: ")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--axis", "model.dim"], "--axis model.dim: expected KEY=V1,V2"),
        (["--axis", "model.dmi=1,2"], "unknown key model.dmi (did you mean 'dim'?)"),
        (["--axis", "model.heads=2,3"], "model.dim = 16 with model.heads = 3"),
        (["--rivals", "cousin"], "--rivals cousin: choose from twin, masked-diffusion"),
        (["--seeds", "0,x"], "is no list of whole numbers"),
        (["--seeds", "0,1", "--seed", "2"], "--seed N is the same as --seeds N"),
        (["--budget-tokens", "0"], "--budget-tokens"),
        (["--budget-tokens", "5"], "a slow step alone reads 128 tokens"),
        (["--budget-tokens", "5e5", "--budget-flops", "1e9"], "exclude each other"),
        (["--budget-flops", "1e300"], "is not in the range 0<x<=1e+30"),
        (["--budget-tokens", "1e29"], "slow steps: no run has more than 1e+12; lower the budget"),
        (["--rivals", ""], "--rivals (empty): choose from twin"),
        (["--axis", "slow.lr=1e-3+1,1"], "slow.lr = '1e-3+1': expected a number"),
        (["--shard", "3/2"], "'3/2' is no part such as 2/8"),
        (["--device-flops", "1e12"], "--device-flops goes with --dry-run"),
        (["--dry-run", "--device-price", "2"], "--device-price goes with --device-flops"),
        (["--retry-failed"], "--retry-failed goes with --resume"),
        (["--set", "data.validation_fraction=0.0"], "hold some out"),
        (["--set", "data.validation_fraction=0.0", "--dry-run"], "hold some out"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(options, says, refuse, settings, text, tmp_path):
    refuse("scale", "--data", text, "--out", tmp_path / "s", *settings(), *options, says=(says,))


def test_a_folder_of_something_else_is_left_alone(refuse, settings, text, tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.txt").write_text("dear")
    refuse("scale", "--data", text, "--out", tmp_path / "s", *settings(), says=("holds something else",))
    (tmp_path / "t").write_text("a file")
    refuse("scale", "--data", text, "--out", tmp_path / "t", *settings(), says=("is a file",))
    (tmp_path / "u").mkdir()
    (tmp_path / "u" / "study.json").write_text('{"format": "other"}')
    refuse("scale", "--data", text, "--out", tmp_path / "u", *settings(), says=("not a study of this release",))


def test_what_ended_without_figures_is_said_at_the_end(invoke, ask, settings, text, tmp_path):
    """As `compare` ends: the work is done, with exit code 0, and says which cells have nothing to show."""
    wild = settings(**STUDY, **{"slow.clip": 0.0, "slow.weight_decay": 0.0, "slow.max_nonfinite": 1})
    words = ("scale", "--data", text, "--out", tmp_path / "s", "--axis", "slow.lr=0.01,1e30", "--rivals", "none")
    first = invoke(*words, *SCORED, *wild)
    assert first.exit_code == 0, first.stderr
    (line,) = [line for line in first.stdout.splitlines() if line.startswith("Without figures: ltm--slow.lr=1e_30--")]
    assert "finite" in line
    last = first.stderr.splitlines()[-1]
    assert last.startswith("Warning: 1 of 2 cells ended without figures (ltm--slow.lr=1e_30--")
    assert "--retry-failed" in last
    assert ask(*words, *SCORED, *wild, "--dry-run", "--device-flops", "1e9")["cells"] == 0
    dry = ask(*words, *SCORED, *wild, "--dry-run", "--device-flops", "1e9", "--retry-failed")
    assert [cell["name"][:9] for cell in dry["by_cell"]] == ["ltm--slow"]
    again = invoke(*words, *SCORED, *wild, "--resume", "--retry-failed")
    assert "Cell: ltm--slow.lr=1e_30--" in again.stderr
    assert "Cell: ltm--seed" not in again.stderr
