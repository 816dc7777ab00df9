"""Figures of texts, by hand and against nltk."""

from __future__ import annotations

import math
import random

import pytest

from pyro_ltm.errors import UserError
from pyro_ltm.evaluation.text_metrics import self_bleu, text_metrics


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
