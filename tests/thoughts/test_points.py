"""Texts as points: neighbours, ways between them, sums and exchanges, against what is known of them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pyro_ltm.data import Document
from pyro_ltm.errors import UserError
from pyro_ltm.inference import infer_thoughts
from pyro_ltm.runs import Run
from pyro_ltm.runs.documents import cut_documents
from pyro_ltm.runs.embedding import embed_pieces, embed_texts
from pyro_ltm.thoughts.expression import Term
from pyro_ltm.thoughts.neighbours import METRICS, find_neighbours, nearest_documents, query_of
from pyro_ltm.thoughts.points import Writing, arithmetic, fit_ends, interpolate, make_points, swap
from pyro_ltm.thoughts.rows import Fitting

FOLDER = Path(__file__).parent.parent / "fixtures/release-0.1.0/run"
A, B, C = "kalo miter sonka lo terka.", "ter son ve du.", "mi ka lo"
SHORT = Writing(max_new_tokens=3)
FITTING = Fitting(fast_steps=2)


@pytest.fixture(scope="module")
def run():
    """A run of two layers that nothing here writes to."""
    return Run.load(FOLDER)


@pytest.fixture(scope="module")
def ends(run):
    return fit_ends(run, [A, B, C], FITTING)


@pytest.fixture(scope="module")
def rows(run):
    return embed_texts(run, [C, A, B, 30 * C], windows=True, posteriors=True, fast_steps=2)


@pytest.mark.parametrize("metric", METRICS)
def test_a_text_is_nearest_to_itself(run, rows, metric):
    found = find_neighbours(run, A, rows, metric=metric, fitting=FITTING)
    assert found[0].about["document"] == 1
    assert found[0].distance == pytest.approx(0, abs=1e-6)
    assert [one.distance for one in found] == sorted(one.distance for one in found)
    assert len(found) == 4, "a document of several windows is there once"
    assert found[1].distance > 1e-6


def test_distances_are_what_they_are_called(run, rows):
    """Of independent Normals, by their formulas."""
    loc, log_variance = (rows.state[name].flatten(1).double() for name in ("loc", "log_variance"))
    a, b = 1, 2  # of windows, too: the long document is the last
    variance, scale = log_variance.exp(), (log_variance / 2).exp()
    expected = {
        "cosine": 1 - float(loc[a] @ loc[b] / (loc[a].norm() * loc[b].norm())),
        "euclid": float((loc[a] - loc[b]).norm()),
        "wasserstein": math.sqrt(float((loc[a] - loc[b]).square().sum() + (scale[a] - scale[b]).square().sum())),
        "kl": 0.5
        * float(
            (
                variance[b] / variance[a]
                + (loc[a] - loc[b]).square() / variance[a]
                - 1
                + log_variance[a]
                - log_variance[b]
            ).sum()
        ),
    }
    for metric, value in expected.items():
        found = find_neighbours(run, A, rows, metric=metric, fitting=FITTING)
        (distance,) = [one.distance for one in found if one.about["document"] == 2]
        assert distance == pytest.approx(value, rel=1e-4), metric


def test_neighbours_that_cannot_be_had(run, rows):
    pooled = rows.pooled()
    few = embed_texts(run, [A], fast_steps=2)
    for among, options, says in (
        (pooled, {"count": 5}, "5 neighbours: there are only 4 documents"),
        (pooled, {"metric": "cosin"}, "did you mean 'cosine'"),
        (pooled, {"metric": "kl"}, "a distance of posteriors needs texts"),
        (few, {"count": 2}, "there is only 1 document"),
    ):
        with pytest.raises(UserError, match=says):
            find_neighbours(run, A, among, fitting=FITTING, **options)
    with pytest.raises(UserError, match="longer than the model reads at once"):
        find_neighbours(run, 12 * A, rows, metric="wasserstein", fitting=FITTING)
    assert len(find_neighbours(run, 12 * A, pooled, fitting=FITTING)) == 4
    assert [one.about["document"] for one in find_neighbours(run, A, few, fitting=FITTING)] == [0]


def test_neighbours_in_some_layers(run):
    one = embed_texts(run, [C, A, B], layers=[1], fast_steps=2)
    assert find_neighbours(run, A, one, fitting=FITTING)[0].about["document"] == 1
    moved = replace(one, thoughts=one.thoughts.flip(0))
    assert find_neighbours(run, A, moved, fitting=FITTING)[0].row == 1
    query = query_of(run, fit_ends(run, [A], FITTING)[0].thoughts, one)
    own = {A: len(run.tokenizer.encode(A))}
    assert {one.row for one in nearest_documents(query, one, but=own)} == {0, 2}


def test_documents_that_only_begin_like_the_text_are_not_left_out(run):
    rows = embed_texts(run, [C, A, A[:9]], fast_steps=2)
    rows = replace(rows, texts=3 * [rows.texts[1]])
    query = query_of(run, fit_ends(run, [A], FITTING)[0].thoughts, rows)
    own = {A: len(run.tokenizer.encode(A))}
    assert {one.row for one in nearest_documents(query, rows, but=own)} == {0, 2}


def test_ends_are_posterior_means_with_their_bounds(run, ends):
    _, posterior = infer_thoughts(run.model, run.loop.with_steps(2), run.tokenizer, [A])
    torch.testing.assert_close(ends[0].thoughts, posterior.mean()[0])
    assert [end.name for end in ends] == ["A", "B", "C"]
    assert ends[0].tokens == len(run.tokenizer.encode(A))
    shown = ends[0].to_dict()
    assert shown["bound_nats_per_token"] == pytest.approx(-ends[0].bound_nats / ends[0].tokens)
    assert 0 < shown["bound_nats_per_token"] < 2 * math.log(300)
    with pytest.raises(UserError, match=r"'kalo.*: the text has \d+ tokens; this model reads at most 31"):
        fit_ends(run, [B, 12 * A])
    with pytest.raises(UserError, match="'': the text is empty"):
        fit_ends(run, [B, ""])


def test_a_points_distortion_is_minus_log_p_of_the_text_given_its_thoughts(run, ends):
    (point,) = make_points(run, ends, {"it": ends[1].thoughts}, SHORT).points
    end = run.tokenizer.end_of_text
    tokens = torch.tensor([[end, *run.tokenizer.encode(A)]])
    with torch.no_grad():
        context = run.model.decoder.context(tokens[:, :-1])
        logits = run.model.decoder.logits(run.model.decoder(context, ends[1].thoughts[None]))
    nats = torch.nn.functional.cross_entropy(logits[0], tokens[0, 1:])
    assert point.nats_per_token["A"] == pytest.approx(float(nats), rel=1e-5)
    assert list(point.nats_per_token) == ["A", "B", "C"]


def test_the_way_from_one_text_to_another_begins_and_ends_with_them(run, ends):
    for way in ("linear", "spherical"):
        found = interpolate(run, A, B, steps=3, way=way, fitting=FITTING, writing=SHORT)
        assert [point.name for point in found.points] == ["0.00", "0.50", "1.00"]
        for point, end in ((found.points[0], ends[0]), (found.points[2], ends[1])):
            torch.testing.assert_close(point.thoughts, end.thoughts)
            itself = make_points(run, found.ends, {"x": end.thoughts}, SHORT).points[0]
            assert point.nats_per_token == pytest.approx(itself.nats_per_token, rel=1e-6)
            assert point.written == itself.written
        if way == "linear":
            torch.testing.assert_close(found.points[1].thoughts, (ends[0].thoughts + ends[1].thoughts) / 2)
    for options in ({"steps": 1}, {"way": "round"}):
        with pytest.raises(UserError, match="expected linear or spherical, and at least 2 steps"):
            interpolate(run, A, B, **options)


def test_what_is_taken_away_again_leaves_nothing_behind(run, ends):
    (point,) = arithmetic(run, f"'{A}' - '{A}' + '{B}'", fitting=FITTING, writing=SHORT).points
    torch.testing.assert_close(point.thoughts, ends[1].thoughts, rtol=0, atol=1e-7)
    assert point.name == "A - A + B"
    terms = [Term(1, A), Term(-0.5, B), Term(2, C)]
    (point,) = arithmetic(run, terms, fitting=FITTING, writing=SHORT).points
    z = [end.thoughts for end in ends]
    torch.testing.assert_close(point.thoughts, z[0] - 0.5 * z[1] + 2 * z[2])
    assert point.name == "A - 0.5 * B + 2 * C"


def test_all_layers_exchanged_are_the_other_text(run, ends):
    a, mixed, other, b = swap(run, A, B, [0, 1], fitting=FITTING, writing=SHORT).points
    assert torch.equal(mixed.thoughts, b.thoughts)
    assert torch.equal(other.thoughts, a.thoughts)
    assert (mixed.nats_per_token, mixed.written) == (b.nats_per_token, b.written)
    a, mixed, other, b = swap(run, A, B, [1], fitting=FITTING, writing=SHORT).points
    assert torch.equal(mixed.thoughts, torch.cat([a.thoughts[:2], b.thoughts[2:]]))
    assert torch.equal(other.thoughts, torch.cat([b.thoughts[:2], a.thoughts[2:]]))
    assert (mixed.name, other.name) == ("A with layer 1 of B", "B with layer 1 of A")
    with pytest.raises(UserError, match="this model has layers 0 to 1"):
        swap(run, A, B, [2])


def test_an_autoregressive_twin_is_refused(run, tmp_path):
    config = replace(run.config, model=replace(run.config.model, thoughts=0))
    twin = replace(run, config=config)
    pieces = list(cut_documents(run, [Document(A, "here")]))
    for refused in (
        lambda: twin.embed([A]),
        lambda: embed_pieces(twin, pieces),
        lambda: interpolate(twin, A, B),
        lambda: swap(twin, A, B, [0]),
        lambda: arithmetic(twin, "a - b"),
        lambda: Fitting().about(twin),
    ):
        with pytest.raises(UserError, match="this model has no thoughts"):
            refused()
