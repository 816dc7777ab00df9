"""Figures of written texts that need no model: entropy, distinct n-grams, repetition, self-BLEU.

A word is what stands between spaces; punctuation belongs to it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pyro_ltm.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TextMetrics:
    """Figures of a set of texts.

    Attributes:
        texts, words: how many.
        entropy_nats: of the frequencies of words. entropy_bits: the same in bits.
        distinct: for n = 1 to 4, distinct n-grams over all n-grams, none across texts (Li et al., arXiv:1510.03055).
        repetition: for n = 1 to 4, mean over texts of the share of n-grams that stood in the same text before.
        self_bleu: mean BLEU-4 of each text against all others (Zhu et al., arXiv:1802.01886), 0 for all different to 1
            for all alike; None for a single text.
    """

    texts: int
    words: int
    entropy_nats: float
    entropy_bits: float
    distinct: dict[str, float]
    repetition: dict[str, float]
    self_bleu: float | None


def text_metrics(texts: Sequence[str]) -> TextMetrics:
    """The figures of `texts`. Raises UserError when there is no word in them."""
    split = [text.split() for text in texts]
    counts = Counter(word for words in split for word in words)
    total = sum(counts.values())
    if not total:
        raise UserError("no words in the texts: nothing to measure")
    entropy = -sum(count / total * math.log(count / total) for count in counts.values())
    return TextMetrics(
        texts=len(split),
        words=total,
        entropy_nats=entropy,
        entropy_bits=entropy / math.log(2),
        distinct={str(n): _distinct(split, n) for n in range(1, 5)},
        repetition={str(n): _repetition(split, n) for n in range(1, 5)},
        self_bleu=self_bleu(split) if len(split) > 1 else None,
    )


def self_bleu(split: Sequence[Sequence[str]], highest: int = 4) -> float:
    """Mean over texts (lists of words) of BLEU against all others; empty texts count 0."""
    grams = [[_count(words, n) for n in range(1, highest + 1)] for words in split]
    most: list[dict[tuple[str, ...], list[int]]] = [{} for _ in range(highest)]
    for own in grams:  # the two highest counts of each n-gram, so that a text can be left out
        for n, counter in enumerate(own):
            for gram, count in counter.items():
                most[n][gram] = sorted([count, *most[n].get(gram, [])], reverse=True)[:2]
    lengths = [len(words) for words in split]
    return sum(_bleu(grams[i], most, lengths, i) for i in range(len(split))) / len(split)


def _bleu(
    own: Sequence[Counter[tuple[str, ...]]],
    most: Sequence[dict[tuple[str, ...], list[int]]],
    lengths: list[int],
    i: int,
) -> float:
    """BLEU of text `i` against all others (Papineni et al. 2002).

    Where no n-gram matches, 0.1 stands for the count (method 1 of Chen and Cherry 2014).
    """
    if not lengths[i]:
        return 0.0
    logs = 0.0
    for n, counter in enumerate(own):
        matched = 0
        for gram, count in counter.items():
            high = most[n][gram]
            others = (high[1] if len(high) > 1 else 0) if count == high[0] else high[0]
            matched += min(count, others)
        if n == 0 and not matched:
            return 0.0
        logs += math.log((matched or 0.1) / max(1, counter.total())) / len(own)
    others_lengths = [length for j, length in enumerate(lengths) if j != i]
    closest = min(others_lengths, key=lambda length: (abs(length - lengths[i]), length))
    brevity = 1.0 if lengths[i] > closest else math.exp(1 - closest / lengths[i])
    return brevity * math.exp(logs)


def _count(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[start:] for start in range(n)), strict=False))


def _distinct(split: Sequence[Sequence[str]], n: int) -> float:
    whole: Counter[tuple[str, ...]] = Counter()
    for words in split:
        whole += _count(words, n)
    return len(whole) / whole.total() if whole else 0.0


def _repetition(split: Sequence[Sequence[str]], n: int) -> float:
    counters = [counter for words in split if (counter := _count(words, n))]
    return sum(1 - len(counter) / counter.total() for counter in counters) / len(counters) if counters else 0.0
