"""Comparisons: what they keep, what they refuse, and that they go on where they stopped."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest
import torch
from helpers.exact_guides import Exact, Linear, Wild
from helpers.stand_ins import LinearGaussian
from pyro.infer import Trace_ELBO

from pyro_ltm.comparison.comparison_file import COLUMNS, at, open_comparison, save
from pyro_ltm.comparison.named import NamedGuides
from pyro_ltm.comparison.posteriors import compare_posteriors, describe
from pyro_ltm.comparison.result import Comparison, Estimate, PairScore
from pyro_ltm.comparison.train_guide import GuideTraining
from pyro_ltm.digests import without_digest
from pyro_ltm.errors import UserError
from pyro_ltm.guides import Delta, FullRank, MeanField
from pyro_ltm.objectives import MAP, MonteCarloELBO
from pyro_ltm.optimizers import Adam, Natural
from pyro_ltm.scores.dependence import Blocks, Places


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)


def compare(model, batches, **options):
    given = {"guides": {"mf": MeanField(2, 2)}, "objectives": {"elbo": MonteCarloELBO()}, "particles": 8}
    return compare_posteriors(model, batches, **(given | {"fast_steps": (4,)} | options))


def test_paired_differences_by_hand():
    model = LinearGaussian()
    batch = model.data(6)
    found = compare(model, [batch], guides={"mf": MeanField(2, 2), "exact": Exact(model)}, fast_steps=(0,))
    assert found.best.guide == "exact"
    other = found.find(("mf", "elbo", 0))
    ours, best = other.nats_by_sequence, found.best.nats_by_sequence
    differences = [x - y for x, y in zip(ours, best, strict=True)]
    behind, mean = found.difference_to_best(other), sum(differences) / 48
    assert behind.nats_per_token == pytest.approx(mean, rel=1e-9)
    # Sequences of equal length: the standard error of a mean, over the eight tokens of each.
    by_hand = math.sqrt(sum((d - sum(differences) / 6) ** 2 for d in differences) / 5 / 6) / 8
    assert behind.stderr == pytest.approx(by_hand, rel=1e-9)
    assert found.difference_to_best(found.best) == Estimate(0.0, 0.0, Blocks(6, 1, "sequences", 6))


def made_up(guide, level, scatter=()):
    nats = [10 * (level + each) for each in scatter]
    return PairScore(guide=guide, objective="o", fast_steps=1, elbo=Estimate(level, 0.1), nats_by_sequence=nats)


def test_ties_go_by_the_difference_and_not_by_the_bounds_own_error():
    noise = [0.5, -0.5, 0.3, -0.3]
    comparison = Comparison("posteriors", {}, token_counts=[10] * 4)
    apart = made_up("apart", 1.05, [*noise])  # the same scatter: always 0.05 behind
    blurred = made_up("blurred", 1.05, [-each for each in noise])
    comparison.pairs = [apart, blurred, made_up("best", 1.0, noise)]
    assert [pair.guide for pair in comparison.ranked()] == ["best", "apart", "blurred"]
    assert comparison.difference_to_best(apart).stderr == pytest.approx(0, abs=1e-12)
    assert comparison.tied_with_best() == [blurred]


def test_differences_honour_neighbours_and_go_on_doing_so_from_the_file():
    """Forty documents of five sequences, each document with a level of its own by which one guide lies behind."""
    generator = torch.Generator().manual_seed(0)
    documents = torch.arange(40).repeat_interleave(5)
    level, noise = torch.randn(40, generator=generator)[documents], torch.randn(200, generator=generator)
    behind, order = 0.05 * level + 0.01 * noise, torch.arange(200)
    comparison = Comparison("posteriors", {}, token_counts=[10] * 200, places=Places(order, documents))
    comparison.pairs = [made_up("behind", 2.0, behind.tolist()), made_up("best", 1.0, [0.0] * 200)]
    found = comparison.difference_to_best(comparison.pairs[0])
    assert found.blocks == Blocks(40, 1, "documents", 40)
    assert found.stderr == pytest.approx(0.05 / 40**0.5, rel=0.3), "that of forty levels, and not of 200 sequences"
    kept = json.loads(json.dumps(comparison.to_dict()))
    again = Comparison.from_dict(kept)
    assert again.difference_to_best(again.pairs[0]) == found
    # A file that does not say where its sequences stand: as independent as it took them.
    older = Comparison.from_dict({key: value for key, value in kept.items() if key != "places"})
    assert older.difference_to_best(older.pairs[0]).stderr < found.stderr / 1.5
    for name in ("ids", "documents"):
        short = {**kept, "places": {**kept["places"], name: [1, 2]}}
        with pytest.raises(UserError, match=rf"places\.{name}: 2 of 200 sequences"):
            Comparison.from_dict(short)


def test_a_posterior_that_ran_away_is_a_line_and_not_the_end():
    model = LinearGaussian()
    found = compare(model, [model.data(4)], guides={"wild": Wild(2, 2), "mf": MeanField(2, 2)})
    wild, tame = found.find(("wild", "elbo", 4)), found.find(("mf", "elbo", 4))
    assert wild.elbo is None
    assert wild.note == "ran away: no finite bound for 4 of 4 sequences"
    assert found.best == tame
    assert found.ranked() == [tame, wild]
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_pair_that_fails_is_a_line_and_not_the_end():
    class Greedy(MeanField):
        def init(self, batch):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    class Singular(MeanField):
        def init(self, batch):
            raise torch.linalg.LinAlgError("not positive definite")

    class Faulty(MeanField):
        def init(self, batch):
            raise RuntimeError("a fault of ours")

    model = LinearGaussian()
    guides = {"greedy": Greedy(2, 2), "singular": Singular(2, 2)}
    found = compare(model, [model.data(2)], guides=guides)
    assert [pair.note for pair in found.pairs] == ["failed: out of memory", "failed: not positive definite"]
    with pytest.raises(RuntimeError, match="a fault of ours"):
        compare(model, [model.data(2)], guides={"faulty": Faulty(2, 2)})


def test_shared_parameters_are_trained_and_the_decoder_does_not_move():
    """The best linear encoder is the exact posterior."""
    model = LinearGaussian()
    batch, guide = model.data(8), Linear(model)
    before = [parameter.clone() for parameter in model.parameters()]
    training = GuideTraining(lambda step: model.data(64), steps=250, lr=0.05)
    options = {"guides": {"linear": guide}, "fast_steps": (0,), "particles": 200}
    trained = compare(model, [batch], guide_training=training, **options).pairs[0]
    raw = compare(model, [batch], **options).pairs[0]
    evidence = float(-model.log_evidence(batch).sum() / 64)
    assert raw.level > evidence + 0.1
    assert trained.level == pytest.approx(evidence, abs=0.01)
    assert trained.ess > 150
    assert trained.guide_training_seconds > 0
    assert raw.guide_training_seconds is None
    assert all(torch.equal(was, now) for was, now in zip(before, model.parameters(), strict=True))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert bool((guide.weights == 0).all()), "the guide that was handed in is not moved"
    assert guide.weights.grad is None


def test_a_guide_and_an_objective_of_ones_own():
    class Cold(MonteCarloELBO):
        def value(self, terms):
            return (terms.log_likelihood + 0.5 * (terms.log_prior - terms.log_guide)).mean(0)

    model = LinearGaussian()
    objectives = {"cold": Cold(), "pyro's": Trace_ELBO()}
    found = compare(model, [model.data(3)], guides={"mine": Exact(model)}, objectives=objectives, fast_steps=(0, 2))
    assert [pair.key for pair in found.pairs] == [("mine", o, n) for o in objectives for n in (0, 2)]
    assert all(pair.elbo is not None for pair in found.pairs)
    assert found.definitions["objectives"]["cold"] == "Cold(particles=1, beta=1.0, warmup=0.0)"


def test_pairs_that_do_not_fit_are_kept_with_their_reason():
    model = LinearGaussian()
    guides = {"point": Delta(2, 2), "mf": MeanField(2, 2)}
    found = compare(model, [model.data(3)], guides=guides, objectives={"elbo": MonteCarloELBO(), "map": MAP()})
    assert [pair.key[:2] for pair in found.pairs] == [("point", "map"), ("mf", "elbo")]
    assert {(one.guide, one.objective) for one in found.refused} == {("point", "elbo"), ("mf", "map")}
    assert all("Delta has no density" in one.reason or "shrink" in one.reason for one in found.refused)
    natural = compare(model, [model.data(3)], guides=guides | {"e": Exact(model)}, optimizer=Natural())
    assert "no natural gradient" in next(one.reason for one in natural.refused if one.guide == "e")
    named = NamedGuides({"mf": MeanField(2, 2)}, missing={"huge": "too large"})
    missing = compare(model, [model.data(3)], guides=named)
    assert (missing.refused[0].guide, missing.refused[0].reason) == ("huge", "too large")


def test_nothing_to_compare():
    model = LinearGaussian()
    with pytest.raises(UserError, match="no guide fits an objective: Delta has no density"):
        compare(model, [model.data(2)], guides={"point": Delta(2, 2)})
    with pytest.raises(UserError, match="nothing to compare"):
        compare(model, [])


def test_it_goes_on_where_it_was_interrupted(tmp_path):
    """Pairs that were scored are not scored again, and the rest comes out as if nothing had happened."""

    class Stubborn(MonteCarloELBO):
        _stops = True

        def value(self, terms):
            if type(self)._stops:
                raise KeyboardInterrupt
            return super().value(terms)

    model = LinearGaussian()
    batch, objectives = model.data(4), {"elbo": MonteCarloELBO(), "stubborn": Stubborn()}
    with pytest.raises(KeyboardInterrupt):
        compare(model, [batch], objectives=objectives, out=tmp_path / "c")
    left = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert [row["objective"] for row in left["pairs"]] == ["elbo"]
    Stubborn._stops = False
    labels = []
    report = {"report": lambda label, total: labels.append(label) or (lambda done, nats: None)}
    found = compare(model, [batch], objectives=objectives, out=tmp_path / "c", **report)
    assert labels == ["mf × stubborn, 4 steps (2/2)"]
    assert found.to_dict()["pairs"][0] == left["pairs"][0], "its very times are kept"
    whole = compare(model, [batch], objectives=objectives)
    assert [pair.nats_by_sequence for pair in found.pairs] == [pair.nats_by_sequence for pair in whole.pairs]
    more = compare(model, [batch], objectives=objectives, fast_steps=(4, 2), out=tmp_path / "c")
    assert len(more.pairs) == 4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"particles": 9}, "made with particles = 8 and not 9"),
        ({"seed": 1}, "made with seed = 0 and not 1"),
        ({"optimizer": Adam(lr=0.1)}, "made with optimizer = "),
        ({"noise": "antithetic"}, "made with fitting = "),
        ({"guides": {"mf": MeanField(2, 2, init_loc=1.0)}}, "guide 'mf' was MeanField"),
    ],
)
def test_it_does_not_mix_what_was_measured_differently(change, says, tmp_path):
    model = LinearGaussian()
    batch = model.data(3)
    compare(model, [batch], out=tmp_path / "c")
    before = (tmp_path / "c" / "compare.json").read_bytes()
    with pytest.raises(UserError) as caught:
        compare(model, [batch], out=tmp_path / "c", **change)
    assert says in str(caught.value)
    assert "choose another --out" in str(caught.value)
    for other, words in ((LinearGaussian(seed=1), "under another decoder"), (model, "on other sequences")):
        data = batch if other is not model else model.data(3)
        with pytest.raises(UserError, match=words):
            compare(other, [data], out=tmp_path / "c")
    assert (tmp_path / "c" / "compare.json").read_bytes() == before


@pytest.mark.parametrize("content", ["", "{}", '{"format": "pyro-ltm comparison 1"}', "[1]", "\xff"])
def test_a_damaged_comparison_is_left_alone(content, tmp_path):
    model = LinearGaussian()
    (tmp_path / "compare.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"compare\.json"):
        compare(model, [model.data(2)], out=tmp_path)
    assert (tmp_path / "compare.json").read_text(encoding="latin-1") == content


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    model = LinearGaussian()
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="holds something else"):
        compare(model, [model.data(2)], out=tmp_path)
    with pytest.raises(UserError, match="is a file"):
        compare(model, [model.data(2)], out=tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_json_comes_back_and_csv_says_the_same(tmp_path):
    model = LinearGaussian()
    guides = {"mf": MeanField(2, 2), "a,b": Delta(2, 2), 'a "wild" one': Wild(2, 2)}
    objectives = {"elbo": MonteCarloELBO(), "map": MAP()}
    found = compare(model, [model.data(3)], guides=guides, objectives=objectives, fast_steps=(1, 2), out=tmp_path / "c")
    read = without_digest(json.loads((tmp_path / "c" / "compare.json").read_text()))
    assert Comparison.from_dict(read).to_dict() == found.to_dict() == read
    rows = list(csv.DictReader(io.StringIO((tmp_path / "c" / "compare.csv").read_text())))
    assert len(rows) == len(read["pairs"]) == 6
    for row, entry in zip(rows, read["pairs"], strict=True):
        assert set(row) == set(COLUMNS)
        for name, place in COLUMNS.items():
            value = at(entry, place)
            assert row[name] == ("" if value is None else str(value)), name


def test_the_keys_of_earlier_releases_are_read():
    model = LinearGaussian()
    found = compare(model, [model.data(3)]).to_dict()
    older = {("members" if key == "definitions" else key): value for key, value in found.items()}
    older["settings"] = {("teaching" if key == "guide_training" else key): v for key, v in found["settings"].items()}
    assert Comparison.from_dict(older).to_dict() == found
    older["members"] = {"guides": {}, "objectives": {"annealed:0.3": "Annealed(particles=1, over=)"}}
    assert Comparison.from_dict(older).definitions["objectives"] == {"annealed:0.3": "KLAnnealing(particles=1, over=)"}
    for key in ("settings", "pairs"):
        with pytest.raises(UserError, match=f"^{key} is missing"):
            Comparison.from_dict({name: value for name, value in older.items() if name != key})


def test_descriptions_tell_members_apart():
    assert describe(MeanField(2, 2)) != describe(MeanField(2, 2, init_loc=0.5))
    assert describe(MonteCarloELBO()) != describe(MonteCarloELBO(particles=2))
    model = LinearGaussian()
    one, other = Linear(model), Linear(model)
    assert describe(one) == describe(other)
    with torch.no_grad():
        other.weights += 1
    assert describe(one) != describe(other)
    assert "has_" not in describe(FullRank(2, 2)), "flags say what a class can do, and are not options"


def test_a_guide_that_learns_may_join_later(tmp_path):
    """Training of guides is a setting of those pairs alone that have something to learn."""
    first = open_comparison(tmp_path, "posteriors", {"seed": 0, "guide_training": None})
    save(first, tmp_path)
    joined = open_comparison(tmp_path, "posteriors", {"seed": 0, "guide_training": {"steps": 20}})
    assert joined.settings["guide_training"] == {"steps": 20}
    save(joined, tmp_path)
    assert open_comparison(tmp_path, "posteriors", {"seed": 0, "guide_training": None}).settings["guide_training"] == {
        "steps": 20
    }
    with pytest.raises(UserError, match="guide_training"):
        open_comparison(tmp_path, "posteriors", {"seed": 0, "guide_training": {"steps": 30}})
    with pytest.raises(UserError, match="seed"):
        open_comparison(tmp_path, "posteriors", {"seed": 1, "guide_training": None})
