"""`worlds`: short English documents from discrete latent factors, with their exact entropy.

Subject, place, object, mood and plot are drawn evenly and stay the same through a document; sentences, and the words in
their gaps, are drawn independently given them. So log p(document) has a closed form, by summing out the factors: the
floor under every valid bound.

Words here are those of the text, the full stop is one, and so is the end of the document, which also stands before it.
Log-probabilities are in nats.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pyro_ltm.data.corpus_options import whole_numbers
from pyro_ltm.data.documents import Document
from pyro_ltm.data.folder import TokenFolder
from pyro_ltm.data.grammar import Grammar, Words, english
from pyro_ltm.errors import UserError

NAME = "worlds"
END = "<end>"
"""The word before the first and after the last sentence."""
STOP = "."

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Story:
    """A document and the value of each factor that it was drawn from."""

    text: str
    factors: Mapping[str, str]


Evidence = dict[str, Floats]
"""p(words read | value) for the values of each factor that they tell of; under "" what is the same for all."""


class _Path(NamedTuple):
    """One way in which the words before a place can have been written.

    Attributes:
        parts, position: the sentence that is being written, and the part of it that comes next.
        sentences: weight of its being each sentence of the document, [length].
        evidence: of the words read.
    """

    parts: tuple[str, ...]
    position: int
    sentences: Floats
    evidence: Evidence


class World:
    """A source of documents whose probabilities are known exactly.

    Args:
        size: values of each factor, at most; 4 gives 768 combinations of factors.
        length: sentences in a document.
        grammar: words and sentences; the built-in English of `size` when None.

    Raises:
        UserError: `size` or `length` out of range.
    """

    def __init__(self, *, size: int = 4, length: int = 15, grammar: Grammar | None = None):
        if length < 2:
            raise UserError(f"worlds: length = {length}: at least 2 sentences, one that opens and one that ends")
        self.size, self.length = size, length
        self.grammar = english(size) if grammar is None else grammar
        self.factors = self.grammar.factors
        self.combinations = math.prod(map(len, self.factors.values()))

    @classmethod
    def of(cls, folder: TokenFolder) -> World | None:
        """The world that all documents of a prepared folder come from; None where they do not, or from several."""
        specs = [*folder.meta["sources"], *folder.meta["validation_sources"]]
        if not all(is_world(spec) for spec in specs):
            return None
        shapes = {(options["size"], options["length"]) for options in map(parse, specs)}
        return cls(size=(shape := shapes.pop())[0], length=shape[1]) if len(shapes) == 1 else None

    def factors_of(self, folder: TokenFolder, texts: Sequence[str]) -> dict[str, list[str]] | None:
        """The true factors of documents of a prepared folder, by factor; None where a text is not one of them whole."""
        specs = map(parse, [*folder.meta["sources"], *folder.meta["validation_sources"]])
        wanted, known = set(texts), {}
        for spec in specs:
            drawn = self.stories(spec["seed"], spec["documents"])
            known.update({story.text: story.factors for story in drawn if story.text in wanted})
        if not wanted <= known.keys():
            return None
        return {name: [known[text][name] for text in texts] for name in self.factors}

    def stories(self, seed: int, count: int) -> Iterator[Story]:
        """The first `count` documents of stream `seed`; document i of a stream is always the same."""
        return (self._story(random.Random(f"{seed}:{number}")) for number in range(count))

    def documents(self, seed: int, count: int) -> Iterator[Document]:
        """`stories` as sources give them, the factors as columns."""
        for number, story in enumerate(self.stories(seed, count)):
            yield Document(story.text, f"{NAME}:seed={seed}: document {number}", columns=story.factors)

    def log_prob(self, text: str) -> float:
        """The log-probability of a document, its end included; minus infinity for a text that no world writes."""
        return float(np.logaddexp.reduce(self.log_prob_by_factors(text))) - math.log(self.combinations)

    def log_prob_given(self, text: str, factors: Mapping[str, str]) -> float:
        """The log-probability of a document given its factors.

        Raises:
            UserError: `factors` does not name one value for each factor.
        """
        if factors.keys() != self.factors.keys() or any(factors[name] not in self.factors[name] for name in factors):
            known = "; ".join(f"{name}: {', '.join(values)}" for name, values in self.factors.items())
            raise UserError(f"worlds: factors {dict(factors)}: expected one value for each of {known}")
        index = tuple(self.factors[name].index(factors[name]) for name in self.factors)
        by_factors = self.log_prob_by_factors(text)
        return float(by_factors.reshape([len(values) for values in self.factors.values()])[index])

    def log_prob_by_factors(self, text: str) -> Floats:
        """The same for each combination of factors, [C], the last factor the fastest."""
        sentences = _sentences(text)
        if sentences is None or len(sentences) != self.length or sentences[-1][-1] != STOP:
            return np.full(self.combinations, -np.inf)
        return self._by_factors(sentences)

    def log_prob_of_start(self, text: str) -> float:
        """The log-probability that a document begins with `text`, whole words of it; minus infinity where none does."""
        sentences = _sentences(text)
        if sentences is None or len(sentences) > self.length:
            return -math.inf
        return float(np.logaddexp.reduce(self._by_factors(sentences))) - math.log(self.combinations)

    def posterior(self, text: str) -> dict[str, dict[str, float]]:
        """p(value | document) of each factor, by Bayes' rule."""
        log_joint = self.log_prob_by_factors(text)
        joint = np.exp(log_joint - np.logaddexp.reduce(log_joint))
        joint = joint.reshape([len(values) for values in self.factors.values()])
        marginals = {}
        for axis, (name, values) in enumerate(self.factors.items()):
            others = tuple(other for other in range(joint.ndim) if other != axis)
            marginals[name] = dict(zip(values, joint.sum(others).tolist(), strict=True))
        return marginals

    def windowed_log_prob(self, text: str, window: int) -> float:
        """log-likelihood of the document under the best predictor that sees only the `window` words before each word.

        Exact: the conditional probability, over all documents and all places in them, of a word after those `window`
        words. It knows its place only where the words tell it, such as by the end-of-document word that stands first.

        Raises:
            UserError: `window` below 1.
        """
        if window < 1:
            raise UserError(f"worlds: window = {window}: at least 1 word")
        words = [END, *words_of(text), END]
        contexts = (tuple(words[max(0, place - window) : place]) for place in range(1, len(words)))
        total = 0.0
        for context, word in zip(contexts, words[1:], strict=True):
            probability = self._after(context).get(word, 0.0)
            total += math.log(probability) if probability else -math.inf
        return total

    def _story(self, generator: random.Random) -> Story:
        factors = {name: values[int(generator.random() * len(values))] for name, values in self.factors.items()}
        sentences = []
        for index in range(self.length):
            templates = self._templates(index)
            template = templates[int(generator.random() * len(templates))]
            words = []
            for part in template.split():
                slot = self.grammar.slots.get(part[1:-1]) if part.startswith("{") else None
                words.append(_pick(slot.words[factors.get(slot.factor, "")], generator) if slot else part)
            sentences.append(" ".join(words).replace(" .", "."))
        return Story(" ".join(sentences), factors)

    def _templates(self, sentence: int) -> tuple[str, ...]:
        return self.grammar.templates(sentence, self.length)

    def _by_factors(self, sentences: Sequence[tuple[str, ...]]) -> Floats:
        """For each combination, [C], log p(the first sentences | factors); the last may be no more than begun."""
        with np.errstate(divide="ignore"):
            return sum(
                (np.log(self._sentence(words, *self._templates(index))) for index, words in enumerate(sentences)),
                start=np.zeros(self.combinations),
            )

    @functools.lru_cache(maxsize=1 << 14)  # noqa: B019 (a world lives as long as its process)
    def _sentence(self, words: tuple[str, ...], *templates: str) -> Floats:
        """p(a sentence of these words, or one that begins so, | factors) for each combination, [C]."""
        total = np.zeros(self.combinations)
        for template in templates:
            parts = template.split()
            if len(parts) >= len(words):  # one that goes on has no full stop where a whole sentence has its own
                evidence: Evidence | None = {}
                for part, word in zip(parts, words, strict=False):
                    evidence = self._weighed(evidence, part, word)
                if evidence is not None:
                    axes = [evidence.get(name, np.ones(len(values))) for name, values in self.factors.items()]
                    table = functools.reduce(np.multiply.outer, axes)
                    total += table.reshape(-1) * evidence.get("", 1.0) / len(templates)
        return total

    def _weighed(self, evidence: Evidence | None, part: str, word: str) -> Evidence | None:
        """`evidence` times that of reading `word` where a sentence has `part`; None where it cannot be read there."""
        if evidence is None or not part.startswith("{"):
            return evidence if part == word else None
        slot = self.grammar.slots[part[1:-1]]
        values = self.factors.get(slot.factor, ("",))
        likelihood = np.array([slot.words[value].get(word, 0.0) for value in values])
        if not likelihood.any():
            return None
        return {**evidence, slot.factor: evidence.get(slot.factor, 1.0) * likelihood}

    @functools.lru_cache(maxsize=1 << 18)  # noqa: B019
    def _after(self, context: tuple[str, ...]) -> dict[str, float]:
        """p(next word | the words before it), over all documents and all places in them."""
        following: dict[str, float] = {}
        for path in self._paths(context):
            part = path.parts[path.position]
            for word in self._possible(part):
                evidence = self._weighed(path.evidence, part, word)
                if evidence is not None:  # its probability is not zero for all that was read before
                    mass = math.prod(float(np.mean(likelihood)) for likelihood in evidence.values())
                    following[word] = following.get(word, 0.0) + mass * float(path.sentences.sum())
        total = sum(following.values())
        return {word: mass / total for word, mass in following.items()} if total else {}

    def _paths(self, context: tuple[str, ...]) -> list[_Path]:
        """All ways in which `context` can have been written, each standing before the next word.

        Every place is passed at most once in a document, as often as its sentence is drawn; so before any word is seen
        a place weighs as much as its sentence's probability.
        """
        if context[0] == END:
            paths, words = list(self._starts((np.arange(self.length) == 0).astype(float), {})), context[1:]
        else:
            starts, words = self._starts(np.ones(self.length), {}), context
            paths = [start._replace(position=place) for start in starts for place in range(len(start.parts))]
        for word in words:
            paths = [after for path in paths for after in self._read(path, word)]
        return paths

    def _read(self, path: _Path, word: str) -> Iterator[_Path]:
        """Where `path` can stand after reading `word`."""
        evidence = self._weighed(path.evidence, path.parts[path.position], word)
        if evidence is None:
            return
        if path.position + 1 < len(path.parts):
            yield path._replace(position=path.position + 1, evidence=evidence)
            return
        if path.sentences[-1]:
            yield _Path((END,), 0, path.sentences[-1:], evidence)
        yield from self._starts(np.concatenate([[0.0], path.sentences[:-1]]), evidence)

    def _starts(self, sentences: Floats, evidence: Evidence) -> Iterator[_Path]:
        """The beginnings of all sentences that may stand at each place of a document, which weighs `sentences`."""
        allowed_at = [self._templates(sentence) for sentence in range(self.length)]
        for template in dict.fromkeys(itertools.chain.from_iterable(allowed_at)):
            allowed = np.array([(template in here) / len(here) for here in allowed_at]) * sentences
            if allowed.any():
                yield _Path(tuple(template.split()), 0, allowed, evidence)

    def _possible(self, part: str) -> list[str]:
        if not part.startswith("{"):
            return [part]
        return list(dict.fromkeys(itertools.chain.from_iterable(self.grammar.slots[part[1:-1]].words.values())))


def is_world(spec: str) -> bool:
    """Whether a source is `worlds`, with or without options."""
    return spec.partition(":")[0] == NAME


def for_scoring(spec: str, like: World | None = None) -> str:
    """The spec of documents that nobody trained on: of another stream, and 1000, unless `spec` says otherwise.

    Args:
        like: the world that a run was trained on, whose shape is taken where `spec` does not give one.
    """
    defaults = DEFAULTS | SCORING | ({"size": like.size, "length": like.length} if like else {})
    return named(parse(spec, defaults))


def parse(spec: str, defaults: Mapping[str, int] | None = None) -> dict[str, int]:
    """The options of `worlds` or `worlds:size=4,length=15,documents=10000,seed=0`, each of which may be left out.

    Args:
        defaults: of those left out; `DEFAULTS` when None.

    Raises:
        UserError: an unknown option, or a value that is no whole number.
    """
    return whole_numbers(spec, filter(None, spec.partition(":")[2].split(",")), defaults or DEFAULTS)


def named(options: Mapping[str, int]) -> str:
    """The spec that `parse` reads back."""
    return f"{NAME}:{','.join(f'{name}={value}' for name, value in options.items())}"


DEFAULTS = {"size": 4, "length": 15, "documents": 10_000, "seed": 0}


SCORING = {"documents": 1000, "seed": 1_000_000}
"""Options that differ when documents are drawn to score a model on."""


def read_world(spec: str) -> Iterable[Document]:
    """The documents of a spec (see `parse`)."""
    options: dict[str, Any] = parse(spec)
    return World(size=options["size"], length=options["length"]).documents(options["seed"], options["documents"])


def _pick(words: Words, generator: random.Random) -> str:
    left = generator.random()
    for word, probability in words.items():
        left -= probability
        if left < 0:
            return word
    return word  # rounding left a little over


def words_of(text: str) -> list[str]:
    """The words of a text, full stops among them."""
    return re.findall(r"[^\s.]+|\.", text)


def _sentences(text: str) -> list[tuple[str, ...]] | None:
    """The words of each sentence, the last perhaps only begun; None for a text not written as `worlds` writes."""
    words = words_of(text)
    ends = [place + 1 for place, word in enumerate(words) if word == STOP]
    sentences = [tuple(words[start:end]) for start, end in itertools.pairwise([0, *ends, len(words)]) if end > start]
    rebuilt = " ".join(" ".join(sentence).replace(" .", ".") for sentence in sentences)
    return sentences if rebuilt == text else None
