"""Figures of written texts that need no model: entropy, distinct n-grams, repetition, self-BLEU.

A word is what stands between spaces; punctuation belongs to it. All figures but repetition depend on the number of
texts, so each figure of the jackknife that gives their standard errors leaves out as many of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyro_ltm.errors import UserError

GROUPS = 10
"""Groups of texts, at least, of which each is left out once; of fewer texts, each is a group."""

Grams = Sequence[Counter[tuple[str, ...]]]
"""How often each n-gram stands in a text, for n = 1, 2, ..."""


@dataclass(frozen=True, kw_only=True)
class TextMetrics:
    """Figures of a set of texts. What has nothing to be measured on, such as words of four in shorter texts, is NaN.

    Attributes:
        texts, words: how many.
        entropy_nats: of the frequencies of words. entropy_bits: the same in bits.
        distinct: for n = 1 to 4, distinct n-grams over all n-grams, none across texts (Li et al., arXiv:1510.03055).
        repetition: for n = 1 to 4, mean over texts of the share of n-grams that stood in the same text before.
        self_bleu: mean BLEU-4 of each text against all others (Zhu et al., arXiv:1802.01886), 0 for all different to 1
            for all alike; None for a single text.
        stderr: the standard error of each, by the same names, from a jackknife over at least ten groups of texts, or
            over the texts where there are fewer; rough for few texts, and too small for what is rare among the texts.
            None for fewer than three.
    """

    texts: int
    words: int
    entropy_nats: float
    entropy_bits: float
    distinct: dict[str, float]
    repetition: dict[str, float]
    self_bleu: float | None
    stderr: dict[str, Any] | None


def text_metrics(texts: Sequence[str]) -> TextMetrics:
    """The figures of `texts`. Raises UserError when there is no word in them."""
    grams = [_grams(text.split()) for text in texts]
    words = sum(own[0].total() for own in grams)
    if not words:
        raise UserError("no words in the texts: nothing to measure")
    stderr = None
    if len(grams) > 2:
        size = max(1, len(grams) // GROUPS)  # the same for each group; what is over is never left out
        starts = range(0, len(grams) - size + 1, size)
        without = [_figures([*grams[:start], *grams[start + size :]]) for start in starts]
        stderr = _jackknife(without, (len(grams) - size) / size)
    return TextMetrics(texts=len(grams), words=words, **_figures(grams), stderr=stderr)


def _figures(grams: Sequence[Grams]) -> dict[str, Any]:
    """All that has a standard error."""
    counts: Counter[tuple[str, ...]] = Counter()
    for own in grams:
        counts.update(own[0])
    total = counts.total()
    entropy = sum(count / total * math.log(total / count) for count in counts.values()) if total else math.nan
    return {
        "entropy_nats": entropy,
        "entropy_bits": entropy / math.log(2),
        "distinct": {str(n): _distinct([own[n - 1] for own in grams]) for n in range(1, 5)},
        "repetition": {str(n): _repetition([own[n - 1] for own in grams]) for n in range(1, 5)},
        "self_bleu": _self_bleu(grams) if len(grams) > 1 else None,
    }


def _jackknife(without: Sequence[Any], left_for_each: float) -> Any:
    """Standard errors from figures (numbers, or dictionaries of them), each without some of the texts.

    `left_for_each`: the texts that are left, for each that is left out.
    """
    if isinstance(without[0], dict):
        return {name: _jackknife([one[name] for one in without], left_for_each) for name in without[0]}
    mean = sum(without) / len(without)
    return math.sqrt(left_for_each * sum((one - mean) ** 2 for one in without) / len(without))


def self_bleu(split: Sequence[Sequence[str]], highest: int = 4) -> float:
    """Mean over texts (lists of words) of BLEU against all others; empty texts count 0."""
    return _self_bleu([_grams(words, highest) for words in split])


def _self_bleu(grams: Sequence[Grams]) -> float:
    most: list[Counter[tuple[str, ...]]] = [Counter() for _ in grams[0]]
    second: list[Counter[tuple[str, ...]]] = [Counter() for _ in grams[0]]  # so that a text can be left out
    for own in grams:
        for counter, high, low in zip(own, most, second, strict=True):
            for gram, count in counter.items():
                if count >= high[gram]:
                    high[gram], low[gram] = count, high[gram]
                elif count > low[gram]:
                    low[gram] = count
    lengths = Counter(own[0].total() for own in grams)
    return sum(_bleu(own, most, second, lengths) for own in grams) / len(grams)


def _bleu(own: Grams, most: Grams, second: Grams, lengths: Counter[int]) -> float:
    """BLEU of one of the texts against all others (Papineni et al. 2002); `lengths`: of how many texts each is.

    Where no n-gram matches, 0.1 stands for the count (method 1 of Chen and Cherry 2014).
    """
    length = own[0].total()
    if not length:
        return 0.0
    logs = 0.0
    for n, counter in enumerate(own):
        matched = sum(count if count < most[n][gram] else second[n][gram] for gram, count in counter.items())
        if n == 0 and not matched:
            return 0.0
        logs += math.log((matched or 0.1) / max(1, counter.total())) / len(own)
    others = [other for other, texts in lengths.items() if other != length or texts > 1]
    closest = min(others, key=lambda other: (abs(other - length), other))
    brevity = 1.0 if length > closest else math.exp(1 - closest / length)
    return brevity * math.exp(logs)


def _grams(words: Sequence[str], highest: int = 4) -> Grams:
    return [Counter(zip(*(words[start:] for start in range(n)), strict=False)) for n in range(1, highest + 1)]


def _distinct(counters: Grams) -> float:
    whole: Counter[tuple[str, ...]] = Counter()
    for counter in counters:
        whole.update(counter)
    return len(whole) / whole.total() if whole else math.nan


def _repetition(counters: Grams) -> float:
    shares = [1 - len(counter) / counter.total() for counter in counters if counter]
    return sum(shares) / len(shares) if shares else math.nan
