"""Directions of labels, and what is written from thoughts that are moved along them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from pyro_ltm.errors import UserError
from pyro_ltm.runs import Run
from pyro_ltm.runs.embedding import embed_texts
from pyro_ltm.thoughts.points import Writing
from pyro_ltm.thoughts.probes import found_width
from pyro_ltm.thoughts.rows import Fitting
from pyro_ltm.thoughts.steering import find_direction, labels_of, steer

FOLDER = Path(__file__).parent.parent / "fixtures/release-0.1.0/run"


def planted(texts: int = 300, dim: int = 12, seed: int = 0):
    """Features whose class means lie along one direction, in noise; wide in some dimensions and narrow in others."""
    generator = torch.Generator().manual_seed(seed)
    way = torch.randn(dim, generator=generator)
    way /= way.norm()
    classes = torch.randint(2, (texts,), generator=generator)
    features = torch.randn(texts, dim, generator=generator) + 3 * classes[:, None] * way
    return features, ["sad" if one else "happy" for one in classes.tolist()], way


def test_a_planted_direction_is_found():
    features, labels, way = planted()
    found = find_direction(features, labels, "sad")
    assert float(found.unit @ way.double()) > 0.95
    assert float(found.unit.norm()) == pytest.approx(1)
    opposite = find_direction(features, labels, "happy")
    torch.testing.assert_close(opposite.unit, -found.unit, atol=1e-4, rtol=0)
    assert found.spread == pytest.approx(float((features.double() @ found.unit).std()))
    assert found.probe.accuracy > 0.85
    assert not found.is_a_guess


def test_moved_features_have_the_label():
    features, labels, _ = planted()
    found = find_direction(features, labels, "sad")
    start = features[labels.index("happy")]
    moved = [found.moved(start, strength) for strength in (-2.0, 0.0, 1.0, 2.0, 4.0)]
    assert torch.equal(moved[1], start)
    assert float((moved[3] - start).norm()) == pytest.approx(2 * found.spread, rel=1e-5)
    chances = found.probability(torch.stack(moved)).tolist()
    assert chances == sorted(chances)
    assert chances[0] < 0.1
    assert chances[-1] > 0.99


def test_the_probability_is_the_classifiers():
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, labels, _ = planted(60)
    found = find_direction(features, labels, "sad", decay=2.0)
    x = features.double()
    x = (x - x.mean(0)) / found_width(features, labels, decay=2.0)
    # Of two classes it has one vector of weights, the difference of ours: their squares are half of its own.
    classifier = linear_model.LogisticRegression(C=2 / 2.0, max_iter=10_000, tol=1e-10)
    classifier.fit(x.numpy(), labels)
    expected = classifier.predict_proba(x.numpy())[:, 1]
    assert found.labels == ["happy", "sad"]
    torch.testing.assert_close(found.probability(features), torch.tensor(expected), atol=1e-3, rtol=0)


def test_a_dimension_in_which_texts_hardly_differ_is_hardly_moved():
    features, labels, _ = planted()
    wide = features.clone()
    wide[:, 0] *= 1e-3
    found = find_direction(wide, labels, "sad")
    assert abs(float(found.unit[0])) < 1e-2


def test_a_label_that_is_not_in_the_features():
    features, labels, _ = planted(60)
    generator = torch.Generator().manual_seed(1)
    shuffled = [labels[row] for row in torch.randperm(60, generator=generator).tolist()]
    assert find_direction(features, shuffled, "sad").is_a_guess
    with pytest.raises(UserError, match="mood: no text has 'sat' \\(did you mean 'sad'\\?\\): choose from happy, sad"):
        find_direction(features, labels, "sat", name="mood")
    with pytest.raises(UserError, match="at least 10"):
        find_direction(features[:4], ["a", "b", "a", "b"], "a")


@pytest.mark.parametrize("layers", [None, [1]])
def test_a_text_is_written_from_moved_thoughts(layers):
    run = Run.load(FOLDER)
    texts = [f"{word} {end}" for word in ("kalo", "ter") for end in ("mi", "ka", "lo", "ve", "du", "son")]
    labels = [text.split()[0] for text in texts]
    rows = embed_texts(run, texts, layers=layers, fast_steps=2)
    options = {"fitting": Fitting(fast_steps=2), "writing": Writing(max_new_tokens=3), "name": "word"}
    found = steer(run, rows, labels, "ter", text="kalo mi", strengths=[0, 3], **options)
    start, moved = (point.thoughts for point in found.points.points)
    assert torch.equal(start, found.points.ends[0].thoughts)
    change = (moved - start).chunk(2)
    assert float(change[1].norm()) > 0
    assert (float(change[0].norm()) == 0) == (layers == [1])
    assert found.probabilities[1] > found.probabilities[0]
    shown = found.to_dict()
    assert [point["strength"] for point in shown["points"]] == [0, 3]
    assert shown["probe"]["classes"] == 2
    for strengths in ([], [1, 1], [float("nan")]):
        with pytest.raises(UserError, match="expected numbers, each of them once"):
            steer(run, rows, labels, "ter", strengths=strengths)
    with pytest.raises(UserError, match="windows of one document"):
        steer(run, dataclasses.replace(rows, document=rows.document // 2), labels, "ter")
    mean = steer(run, rows, labels, "ter", strengths=[0], **options).points.points[0].thoughts
    torch.testing.assert_close(mean.chunk(2)[1], rows.thoughts.mean(0).chunk(1 if layers else 2)[-1])


def test_labels_are_a_column_of_the_rows():
    run = Run.load(FOLDER)
    rows = embed_texts(run, ["kalo", "ter"], fast_steps=0)
    for nothing in (None, "", float("nan")):  # as a .jsonl has it, a .csv, and an .npz of numbers
        rows.table["stars"] = [5, nothing]
        with pytest.raises(UserError, match="document 1 has nothing there"):
            labels_of(rows, "stars")
    with pytest.raises(UserError, match="did you mean 'stars'"):
        labels_of(rows, "star")
    rows.table["stars"] = [5, True]
    assert labels_of(rows, "stars") == ["5", "True"]
