"""Figures of written texts that need no model: entropy, distinct n-grams, repetition, self-BLEU.

A word is what stands between spaces; punctuation belongs to it. Standard errors are those of the jackknife over texts,
in groups: all figures but repetition change with the number of texts, and each of its own leaves out as many. On
average it is too large rather than too small (Efron and Stein 1981).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
        stderr: the standard error of each, by the same names, for as many texts; None for fewer than three.
    """

    texts: int
    words: int
    entropy_nats: float
    entropy_bits: float
    distinct: dict[str, float]
    repetition: dict[str, float]
    self_bleu: float | None
    stderr: dict[str, Any] | None


GROUPS = 20
"""Groups of texts, at least, of which each is left out once, for the standard errors; fewer texts are each a group."""


def text_metrics(texts: Sequence[str]) -> TextMetrics:
    """The figures of `texts`. Raises UserError when there is no word in them."""
    split = [text.split() for text in texts]
    words = sum(map(len, split))
    if not words:
        raise UserError("no words in the texts: nothing to measure")
    size = max(1, len(split) // GROUPS)  # the same for each group; what is over is never left out
    starts = range(0, len(split) - size + 1, size)
    without = [_figures([*split[:start], *split[start + size :]]) for start in starts]
    stderr = _jackknife(without, (len(split) - size) / size) if len(split) > 2 else None
    return TextMetrics(texts=len(split), words=words, **_figures(split), stderr=stderr)


def _figures(split: Sequence[Sequence[str]]) -> dict[str, Any]:
    """All that has a standard error."""
    counts = Counter(word for words in split for word in words)
    total = counts.total()
    entropy = sum(count / total * math.log(total / count) for count in counts.values())
    return {
        "entropy_nats": entropy,
        "entropy_bits": entropy / math.log(2),
        "distinct": {str(n): _distinct(split, n) for n in range(1, 5)},
        "repetition": {str(n): _repetition(split, n) for n in range(1, 5)},
        "self_bleu": self_bleu(split) if len(split) > 1 else None,
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
    grams = [[_count(words, n) for n in range(1, highest + 1)] for words in split]
    most: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(highest)]
    second: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(highest)]  # so that a text can be left out
    for own in grams:
        for counter, high, low in zip(own, most, second, strict=True):
            for gram, count in counter.items():
                if count >= high[gram]:
                    high[gram], low[gram] = count, high[gram]
                elif count > low[gram]:
                    low[gram] = count
    lengths = [len(words) for words in split]
    return sum(_bleu(grams[i], most, second, lengths, i) for i in range(len(split))) / len(split)


def _bleu(
    own: Sequence[Counter[tuple[str, ...]]],
    most: Sequence[Counter[tuple[str, ...]]],
    second: Sequence[Counter[tuple[str, ...]]],
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
        matched = sum(count if count < most[n][gram] else second[n][gram] for gram, count in counter.items())
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
        whole.update(_count(words, n))
    return len(whole) / whole.total() if whole else 0.0


def _repetition(split: Sequence[Sequence[str]], n: int) -> float:
    counters = [counter for words in split if (counter := _count(words, n))]
    return sum(1 - len(counter) / counter.total() for counter in counters) / len(counters) if counters else 0.0
