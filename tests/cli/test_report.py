"""`pyro-ltm report`."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from pyro_ltm.config import apply_settings
from pyro_ltm.digests import without_digest
from pyro_ltm.reports.training_plots import training_picture
from pyro_ltm.runs import Run
from pyro_ltm.thoughts import probes, report


@pytest.mark.usefixtures("with_extras")
def test_report_of_a_run(ask, own_run, tmp_path):
    result = ask("report", own_run, "--sequences", 12, "--particles", 2, "--out", tmp_path / "page")
    found = result["thoughts"]
    assert (found["sequences"], found["particles"], found["fast_steps"], found["seed"]) == (12, 2, 2, 0)
    assert found["ceiling"] == pytest.approx(math.log(12))
    page = (tmp_path / "page" / "report.html").read_text(encoding="utf-8")
    assert "Progressive reconstruction" in page
    assert "12 sequences, 384 tokens; 2 fast steps of MeanField; particles 2, seed 0" in page
    assert "http" not in page.replace("http-equiv", "")
    saved = json.loads((tmp_path / "page" / "report.json").read_text())
    assert saved == {key: value for key, value in result.items() if key != "page"}
    pictures = {path.stem for path in (tmp_path / "page").glob("*.png")}
    assert pictures == {"rates", "distortion", "layers", "map"}
    assert page.count("data:image/png;base64,") == len(pictures) + 1, "and the curves of training"
    assert not list((tmp_path / "page").glob(".*"))
    assert [len(result["interpolation"][way]) for way in ("shares", "linear", "spherical")] == [5, 5, 5]
    assert len(result["arithmetic"]["nearest"]) == 3
    assert all(0 <= one["token_accuracy"] <= 1 and one["tokens"] == 32 for one in result["reconstructions"])


def test_curves_of_training_are_drawn_where_training_did_not(ask, own_run, tmp_path, with_extras):
    (own_run / "plots" / "training.png").unlink()  # which another test's command may have left unpainted
    assert training_picture(own_run) is not None
    ask("report", own_run, "--sequences", 4, "--out", tmp_path / "page")
    assert '<figure id="training">' in (tmp_path / "page" / "report.html").read_text(encoding="utf-8")
    assert not (own_run / "plots" / "training.png").exists(), "a report leaves the rest of the run alone"
    (own_run / "metrics.jsonl").unlink()
    assert training_picture(own_run) is None


def test_the_same_seed_gives_the_same_report(ask, trained, tmp_path):
    options = ["report", trained, "--sequences", 6, "--out", tmp_path / "page", "--particles", 1]
    first = ask(*options)
    assert ask(*options) == first
    assert ask(*options, "--seed", 1)["thoughts"]["distortion"] != first["thoughts"]["distortion"]


def test_report_in_the_run_shows_its_evaluation(ask, own_run):
    ask("evaluate", own_run, "--sequences", 4, "--protocol", "all", "--particles", 2)
    result = ask("report", own_run, "--sequences", 4)
    assert result["page"] == str(own_run / "report" / "report.html")
    page = (own_run / "report" / "report.html").read_text(encoding="utf-8")
    assert "reference: NOT a bound" in page
    assert "bound (at most)" in page


def test_figures_of_another_evaluation(ask, refuse, own_run, text, tmp_path):
    """Those of other texts, fitted another way, come from a file; the page says on what and how they were measured."""
    settings = ["--set", "optimizer.lr=0.125"]
    found = ask("evaluate", own_run, "--data", text, "--sequences", 4, "--fast-steps", 3, *settings)
    (tmp_path / "figures.json").write_text(json.dumps(found))
    options = ["--sequences", 4, "--fast-steps", 3, *settings]
    result = ask("report", own_run, *options, "--evaluation", tmp_path / "figures.json")
    page = (own_run / "report" / "report.html").read_text(encoding="utf-8")
    assert f"Measured on {text}; 4 sequences; 3 fast steps; particles 4; seed 0; optimizer.lr=0.125; " in page
    few = "over 4 sequences, taken as independent: too few to see whether neighbours are"
    assert f"± is the standard error {few}" in page
    assert f"that of the rate is {few}" in page
    assert {result["thoughts"]["rate"]["blocks"]["units"], found["bound"]["blocks"]["units"]} == {4}
    assert f"{found['bound']['effective_sample_size']:.1f} of 4 draws count." in page
    assert f"{found['bound']['nats_per_token']:.4f}" in page
    assert result["settings"] == ["optimizer.lr=0.125"]
    assert "lr = 0.125" not in page, "the settings on the page are those of the training"
    plain = ask("report", own_run, "--sequences", 4, "--fast-steps", 3)
    assert plain["thoughts"]["rate"] != result["thoughts"]["rate"]
    assert "Likelihood" not in (own_run / "report" / "report.html").read_text(encoding="utf-8")


def test_figures_that_are_not_of_this_run_are_refused(ask, invoke, refuse, own_run, tmp_path):
    found = ask("evaluate", own_run, "--sequences", 4)
    ask("report", own_run, "--sequences", 4)
    file = tmp_path / "figures.json"
    blocks_of_none = found["bound"] | {"blocks": {"count": 1, "length": 0, "of": "sequences", "units": 4}}
    for content, says in (
        (None, "cannot be read"),
        ("{not json", "not what `pyro-ltm evaluate --json` prints"),
        ("[1, 2]", "not what `pyro-ltm evaluate --json` prints"),
        (json.dumps(found | {"run": "runs/b", "fingerprint": "0"}), "of runs/b at step 4; its fingerprint is not"),
        (json.dumps({key: found[key] for key in found if key != "fingerprint"}), "its fingerprint is not that of"),
        (json.dumps({key: found[key] for key in ("run", "step")}), "not what `pyro-ltm evaluate --json` prints"),
        (json.dumps(found | {"bound": blocks_of_none}), "not what `pyro-ltm evaluate --json` prints"),
        (json.dumps(found | {"bound": "none"}), "not what `pyro-ltm evaluate --json` prints"),
        ((own_run / "report" / "report.json").read_text(), "not what `pyro-ltm evaluate --json` prints"),
    ):
        if content is not None:
            file.write_text(content)
        refuse("report", own_run, "--evaluation", file, "--out", tmp_path / "page", says=(says,))
    evaluation = own_run / "evaluation.json"
    old = without_digest(json.loads(evaluation.read_text()))
    evaluation.write_text(json.dumps(old | {"fingerprint": "0"}))
    assert (
        "evaluation.json is not of this run as it is now, and not shown"
        in invoke("report", own_run, "--sequences", 4).stderr
    )
    page = (own_run / "report" / "report.html").read_text(encoding="utf-8")
    assert "Likelihood" not in page, "figures of an older step do not stand beside newer thoughts"


def test_runs_are_told_apart_by_more_than_their_decoder(trained, twin, own_run):
    """By guide and settings, too; not by the precision that they are loaded in, nor by their folder."""
    run = Run.load(trained)
    assert Run.load(own_run, dtype="bfloat16").fingerprint == run.fingerprint
    assert Run.load(twin).fingerprint != run.fingerprint
    other = dataclasses.replace(run, config=apply_settings(run.config, ["guide.name=low-rank"]))
    assert other.fingerprint != run.fingerprint


def test_report_of_a_twin(ask, invoke, refuse, twin, tmp_path):
    result = ask("report", twin, "--out", tmp_path / "page")
    assert "thoughts" not in result
    assert "no thoughts" in (tmp_path / "page" / "report.html").read_text(encoding="utf-8")
    assert "no thoughts" in invoke("report", twin, "--out", tmp_path / "page").stdout
    refuse("report", twin, "--set", "fast.stepps=3", says=("fast.stepps",))
    refuse("report", twin, "--texts", "kalo", "mira", "tove", says=("no thoughts", "nothing to probe"))


def test_a_guide_without_density_is_looked_at_by_another(ask, invoke, trained, settings, tmp_path):
    point = ["--set", "guide.name=delta", "--set", "objective.name=map"]
    done = invoke("train", "--data", trained / "data", "--out", tmp_path / "run", *settings(), *point)
    assert done.exit_code == 0, done.stderr
    result = ask("report", tmp_path / "run", "--sequences", 5)
    assert result["thoughts"]["guide"] == "MeanField"
    (remark,) = result["notes"]
    assert "'delta' has no density" in remark
    assert "no density" in (tmp_path / "run" / "report" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("short", [True, pytest.param(False, marks=pytest.mark.long)])
def test_a_worlds_own_factors(ask, invoke, settings, tmp_path, monkeypatch, short):
    if short:  # five labels beside one baseline; two labels beside all: test_labels_from_a_file
        every = report.baselines
        monkeypatch.setattr(report, "baselines", lambda *words, **options: few(every(*words, **options)))
        monkeypatch.setattr(probes, "FOLDS", 3)
    tiny = settings(**{"model.max_length": 64, "data.sequence_length": 64})
    done = invoke("train", "--data", "worlds:length=2,documents=60", "--out", tmp_path / "run", *tiny)
    assert done.exit_code == 0, done.stderr
    result = ask("report", tmp_path / "run", "--data", "worlds:documents=30", "--sequences", 30)
    assert result["data"] == "worlds:documents=30"
    assert {probe["label"] for probe in result["probes"]} == {"subject", "place", "object", "mood", "plot"}
    assert all(probe["texts"] == 30 for probe in result["probes"])
    assert (tmp_path / "run" / "report" / "map-subject.png").exists()
    cut = ask("report", tmp_path / "run", "--data", "worlds:length=9,documents=12", "--sequences", 12)
    assert cut["probes"] == []
    assert "not whole documents" in cut["notes"][0]


def few(found):
    """The first of the baselines alone."""
    return dict(list(found.items())[:1])


@pytest.fixture
def labelled(tmp_path):
    """Texts with a label that is a number, and one whose name and values are hard on files and legends."""
    rows = [
        {"text": f"kalo {'mira' if n % 2 else 'tove'} {n}", "stars": n % 2, "a/b": ["_x", "$y", "", "z" * 90][n % 4]}
        for n in range(20)
    ]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.usefixtures("with_extras")
def test_labels_from_a_file(ask, invoke, trained, labelled, tmp_path, monkeypatch):
    monkeypatch.setattr(probes, "FOLDS", 3)  # of both labels and all baselines, twice
    columns = ["--label-column", "stars", "--label-column", "a/b"]
    options = ["report", trained, "--labels", labelled, *columns, "--out", tmp_path / "page"]
    result = ask(*options)
    assert [(p["label"], p["classes"], p["texts"]) for p in result["probes"]] == [("stars", 2, 20), ("a/b", 4, 20)]
    assert result["data"] == str(labelled)
    assert {path.name for path in (tmp_path / "page").glob("map*")} == {"map-stars.png", "map-a-b.png"}
    assert "probe of stars" in invoke(*options[:6], *options[-2:]).stdout


def test_a_label_that_cannot_be_probed_is_a_remark_and_so_is_a_text_that_is_cut(ask, trained, labelled, tmp_path):
    labelled.write_text(labelled.read_text().replace("kalo tove 0", "kalo " * 60))
    options = ["--labels", labelled, "--label-column", "stars", "--sequences", 4, "--out", tmp_path / "page"]
    found = ask("report", trained, *options)
    (probe,), (note,) = found["probes"], found["notes"]
    assert note == "Of 1 texts the beginning alone is looked at: they are longer than the model reads."
    assert "a probe needs at least 10" in probe["problem"]
    assert probe["problem"].split("'")[0] in (tmp_path / "page" / "report.html").read_text(encoding="utf-8")


def test_texts_of_our_own(ask, refuse, trained, tmp_path):
    texts = ["kalo mira", "tove", "mira <b>"]
    result = ask("report", trained, "--sequences", 5, "--texts", *texts, "--out", tmp_path / "page")
    assert result["interpolation"]["texts"] == texts[:2]
    assert result["arithmetic"]["texts"] == texts
    assert "mira &lt;b&gt;" in (tmp_path / "page" / "report.html").read_text(encoding="utf-8")
    refuse("report", trained, "--texts", "kalo", "", "mira", "--out", tmp_path / "none", says=("the text is empty",))
    long = "kalo " * 60
    refuse("report", trained, "--texts", "kalo", long, "mira", "--out", tmp_path / "none", says=("reads at most 31",))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--labels", "missing.jsonl", "--label-column", "kind"], "missing.jsonl"),
        (["--labels", "texts.txt", "--label-column", "kind"], "expected a .jsonl, .csv or .parquet file"),
        (["--labels", "texts.jsonl"], "--labels and --label-column go together"),
        (["--labels", "t.jsonl", "--label-column", "kind", "--data", "worlds"], "give either --labels or --data"),
    ],
)
def test_bad_labels(refuse, trained, options, says):
    refuse("report", trained, *options, says=(says,), quiet=False)


def test_data_and_places_that_do_not_fit(ask, refuse, trained, text, labelled, tmp_path):
    ask("prepare", text, "--out", tmp_path / "other", "--vocab-size", 290, "--sequence-length", 32)
    refuse("report", trained, "--data", tmp_path / "other", says=("made by another tokenizer", str(tmp_path / "other")))
    refuse("report", trained, "--out", labelled, says=("is a file; name a folder",))
    refuse("report", trained, "--labels", labelled, "--label-column", "star", says=("did you mean 'stars'",))
    labelled.write_text("")
    refuse("report", trained, "--labels", labelled, "--label-column", "stars", says=("no sequences",))
