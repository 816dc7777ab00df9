"""Figures of texts, by hand and against nltk."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from pyro_ltm.errors import UserError
from pyro_ltm.tasks.text_metrics import self_bleu, text_metrics


def test_by_hand():
    found = text_metrics(["a b a b", "a c"])
    assert (found.texts, found.words) == (2, 6)
    shares = [3 / 6, 2 / 6, 1 / 6]
    assert found.entropy_nats == pytest.approx(-sum(p * math.log(p) for p in shares))
    assert found.entropy_bits == pytest.approx(found.entropy_nats / math.log(2))
    assert found.distinct == {"1": 3 / 6, "2": 3 / 4, "3": 1.0, "4": 1.0}
    assert found.repetition["1"] == pytest.approx((2 / 4 + 0) / 2)
    assert found.repetition["2"] == pytest.approx((1 / 3 + 0) / 2)


def test_alike_and_unlike():
    same = text_metrics(["the cat sat on the mat"] * 3)
    assert same.self_bleu == pytest.approx(1)
    other = text_metrics(["a b c d e", "f g h i j"])
    assert other.self_bleu == 0
    assert text_metrics(["one text alone"]).self_bleu is None
    with pytest.raises(UserError, match="no words"):
        text_metrics(["", "  "])


def test_self_bleu_is_nltks():
    bleu = pytest.importorskip("nltk.translate.bleu_score")
    generator = random.Random(0)
    words = ["a", "b", "c", "d", "e", "f"]
    texts = [[generator.choice(words) for _ in range(generator.randint(5, 14))] for _ in range(12)]
    smooth = bleu.SmoothingFunction().method1
    theirs = [
        bleu.sentence_bleu(texts[:i] + texts[i + 1 :], text, smoothing_function=smooth) for i, text in enumerate(texts)
    ]
    assert self_bleu(texts) == pytest.approx(sum(theirs) / len(theirs), rel=1e-9)


@pytest.mark.parametrize("count", [3, 12, 45])
def test_errors_of_a_mean_are_those_of_its_groups(count):
    generator = random.Random(0)
    texts = [" ".join(generator.choice("abcd") for _ in range(9)) for _ in range(count)]
    shares = [1 - len(set(text.split())) / 9 for text in texts]
    size = max(1, count // 10)
    left = [(sum(shares) - sum(shares[at : at + size])) / (count - size) for at in range(0, count - size + 1, size)]
    squares = sum((mean - sum(left) / len(left)) ** 2 for mean in left)
    found = text_metrics(texts)
    assert found.repetition["1"] == pytest.approx(sum(shares) / count)
    expected = math.sqrt(squares / len(left) * (count - size) / size)
    assert found.stderr["repetition"]["1"] == pytest.approx(expected, rel=1e-9)
    if size == 1:
        assert expected == pytest.approx(statistics.stdev(shares) / math.sqrt(count))


def test_what_cannot_be_measured_is_not_known():
    assert text_metrics(["a b", "c d"]).stderr is None
    found = text_metrics(["a b c", "", ""])
    assert found.distinct["1"] == 1
    assert math.isnan(found.distinct["4"]), "no text has four words"
    assert math.isnan(found.stderr["distinct"]["1"]), "without the first text there are no words"


def test_errors_are_the_spread_over_fresh_texts():
    def texts(seed: int) -> list[str]:
        generator = random.Random(seed)
        words, weights = [f"w{rank}" for rank in range(1, 301)], [1 / rank for rank in range(1, 301)]
        some = [generator.choices(words, weights, k=6) for _ in range(40)]  # so the words of a text go together
        return [" ".join(generator.choice(own) for _ in range(generator.randint(8, 16))) for own in some]

    found = [text_metrics(texts(seed)) for seed in range(40)]
    for figure in (
        lambda one: one["entropy_bits"],
        lambda one: one["self_bleu"],
        lambda one: one["distinct"]["1"],
        lambda one: one["distinct"]["2"],
        lambda one: one["repetition"]["1"],
    ):
        spread = statistics.stdev(figure(vars(one)) for one in found)
        told = statistics.mean(figure(one.stderr) for one in found)
        assert 0.8 * spread < told < 1.4 * spread  # of 40 sets, 0.11 of the spread is chance
