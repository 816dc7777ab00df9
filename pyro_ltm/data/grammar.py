"""The words and sentences of `worlds`: what its documents are made of. Plain data; `worlds` computes with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pyro_ltm.errors import UserError

Words = Mapping[str, float]
"""Words and their probabilities, which sum to one."""


@dataclass(frozen=True)
class Slot:
    """A gap in a sentence.

    Attributes:
        factor: the factor that decides its words; empty: they are drawn the same way in every world.
        words: for each value of the factor (or the one value "") its words.
    """

    factor: str
    words: Mapping[str, Words]


@dataclass(frozen=True)
class Grammar:
    """Factors, each with its evenly likely values; slots; and sentences, evenly likely in their place.

    Attributes:
        factors: name of each factor and its values.
        slots: by name.
        opening, middle, ending: sentences for the first, each middle and the last place of a document; words and
            `{slot}` between spaces, a full stop at the end and nowhere else.
    """

    factors: Mapping[str, tuple[str, ...]]
    slots: Mapping[str, Slot]
    opening: tuple[str, ...]
    middle: tuple[str, ...]
    ending: tuple[str, ...]

    def templates(self, sentence: int, length: int) -> tuple[str, ...]:
        """The sentences that may stand at place `sentence` (from 0) of a document of `length`."""
        if sentence == length - 1:
            return self.ending
        return self.middle if sentence else self.opening


def english(size: int) -> Grammar:
    """The built-in grammar, with at most `size` values for each of its five factors.

    A factor shows itself once in about four sentences, so that a predictor that sees the last dozen words has mostly
    forgotten it, and only the plot's two ends say which plot it was.

    Raises:
        UserError: `size` below 2 or above 8.
    """
    if not 2 <= size <= 8:
        raise UserError(f"worlds: size = {size}: from 2 to 8 values for each factor")
    factors = {name: tuple(values)[:size] for name, values in _VALUES.items()}
    slots = {
        name: Slot(factor, {value: words[value] for value in factors[factor]})
        for name, (factor, words) in _FACTOR_SLOTS.items()
    }
    slots |= {name: Slot("", {"": _evenly(words)}) for name, words in _FREE_SLOTS.items()}
    return Grammar(factors, slots, _OPENING, _MIDDLE, _ENDING)


def _evenly(words: str) -> Words:
    split = words.split()
    return {word: 1 / len(split) for word in split}


def _mostly(own: str, shared: str) -> Words:
    """The value's own word in four cases of five, else one that tells nothing."""
    return {own: 0.8, shared: 0.2}


_MOODS: dict[str, Words] = {
    "calm": {"quietly": 0.5, "slowly": 0.3, "gently": 0.2},
    "glad": {"gladly": 0.5, "quickly": 0.3, "gently": 0.2},
    "sad": {"sadly": 0.5, "slowly": 0.3, "softly": 0.2},
    "angry": {"loudly": 0.5, "quickly": 0.3, "roughly": 0.2},
}
_PLOTS: dict[str, tuple[str, str]] = {  # how it begins, and how it ends
    "theft": ("stole", "returned"),
    "search": ("wanted", "found"),
    "trade": ("bought", "sold"),
    "craft": ("drew", "finished"),
}
_VALUES: dict[str, list[str]] = {
    "subject": ["fox", "baker", "sailor", "witch", "farmer", "king", "girl", "monk"],
    "place": ["mill", "harbor", "forest", "market", "bridge", "castle"],
    "object": ["lamp", "ring", "map", "drum", "key", "coat"],
    "mood": list(_MOODS),
    "plot": list(_PLOTS)[:3],
}
_FACTOR_SLOTS: dict[str, tuple[str, Mapping[str, Words]]] = {
    "subject": ("subject", {value: _mostly(value, "stranger") for value in _VALUES["subject"]}),
    "place": ("place", {value: _mostly(value, "village") for value in _VALUES["place"]}),
    "object": ("object", {value: _mostly(value, "thing") for value in _VALUES["object"]}),
    "mood": ("mood", _MOODS),
    "began": ("plot", {plot: {began: 1.0} for plot, (began, _) in _PLOTS.items()}),
    "ended": ("plot", {plot: {ended: 1.0} for plot, (_, ended) in _PLOTS.items()}),
}
_FREE_SLOTS = {
    "time": "morning evening winter summer",
    "colour": "red blue grey green",
    "number": "two three four nine",
    "went": "walked ran came",
}
_OPENING = (
    "Once the {subject} {began} the {object} .",
    "Long ago the {subject} {began} the {object} .",
)
_MIDDLE = (
    "The {subject} {went} out one {time} .",
    "It was {time} and the {subject} waited .",
    "They {went} to the {place} at noon .",
    "Near the {place} the road was {colour} .",
    "The {object} was {colour} and very old .",
    "Some spoke of the {object} all {time} .",
    "Everyone sang {mood} until the {time} .",
    "Then {number} birds called {mood} .",
)
_ENDING = (
    "At last the {subject} {ended} the {object} .",
    "In the end the {subject} {ended} it {mood} .",
)
