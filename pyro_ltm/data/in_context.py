"""`in-context`: documents of questions and answers under a rule that changes from document to document.

Each document draws a rule, evenly, and keeps it: the modulus of an addition, an order of letters, what keys stand for,
what made-up verbs do. Its lines are questions, drawn evenly and independently, with their answers; so line s + 1 is a
question after s shots. A rule has one or more parts, each with evenly likely values, and a question asks for one part:
its answer is determined by that part's value. So what is known after any shots is known exactly: the values that agree
with all of them, each as likely as the others.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pyro_ltm.config import suggest
from pyro_ltm.data.corpus_options import whole_numbers
from pyro_ltm.data.documents import Document
from pyro_ltm.errors import UserError

NAME = "in-context"
DEFAULTS = {"shots": 12, "documents": 10_000, "seed": 0}
SCORING = {"documents": 1000, "seed": 1_000_000}
"""Options that differ when documents are drawn to score a model on."""

Values = frozenset[int]
"""Values of a part that agree with all shots so far, by their place."""


@dataclass(frozen=True)
class Question:
    """A question about one part of the rule, and its answer under each value of that part."""

    text: str
    part: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Shot:
    """A question and its answer under a document's rule."""

    question: Question
    answer: str

    @property
    def text(self) -> str:
        """Its line."""
        return f"{self.question.text} {self.answer}\n"


@dataclass(frozen=True)
class Lesson:
    """A document: its rule, the value of each part by name, and its lines."""

    rule: Mapping[str, str]
    shots: tuple[Shot, ...]

    @property
    def text(self) -> str:
        """All lines."""
        return "".join(shot.text for shot in self.shots)

    def prompt(self, shots: int) -> str:
        """The first `shots` lines, and the question after them."""
        return "".join(shot.text for shot in self.shots[:shots]) + self.shots[shots].question.text


@dataclass(frozen=True)
class Known:
    """The best that anyone can do who knows the task: the mean over documents of what the shots leave open.

    Attributes:
        accuracy: chance that the likeliest answer is the right one. nats: entropy of the answer.
    """

    accuracy: float
    nats: float


class InContext:
    """A task to be learned in context: parts of a rule, each with its values, and evenly likely questions."""

    def __init__(self, name: str, parts: Mapping[str, Sequence[str]], questions: Sequence[Question]):
        self.name, self.parts, self.questions = name, parts, tuple(questions)

    def lessons(self, seed: int, count: int, shots: int) -> Iterator[Lesson]:
        """The first `count` documents of stream `seed`, each of `shots` + 1 lines; document i is always the same."""
        return (self._lesson(random.Random(f"{seed}:{number}"), shots + 1) for number in range(count))

    def documents(self, seed: int, count: int, shots: int) -> Iterator[Document]:
        """`lessons` as sources give them, the rule as columns."""
        for number, lesson in enumerate(self.lessons(seed, count, shots)):
            where = f"{NAME}:{self.name}:seed={seed}: document {number}"
            yield Document(lesson.text, where, columns=lesson.rule)

    def answers(self, shots: Sequence[Shot], question: Question) -> dict[str, float]:
        """p(answer | shots, question), exactly, of each answer that is possible after these shots."""
        same = [shot for shot in shots if shot.question.part == question.part]
        values = range(len(self.parts[question.part]))
        left = [value for value in values if all(shot.question.answers[value] == shot.answer for shot in same)]
        found: dict[str, float] = {}
        for value in left:
            answer = question.answers[value]
            found[answer] = found.get(answer, 0.0) + 1 / len(left)
        return found

    def known_after(self, shots: int) -> Known:
        """Exact, over all documents, for the question after so many shots; after none, it is the level of chance.

        The shots that ask for one part are binomial, and each splits the values that are left.
        """
        accuracy = nats = 0.0
        for part in self.parts:
            share = sum(question.part == part for question in self.questions) / len(self.questions)
            for own in range(shots + 1):
                weight = share * math.comb(shots, own) * share**own * (1 - share) ** (shots - own)
                known = self._known_of(part, own)
                accuracy, nats = accuracy + weight * known.accuracy, nats + weight * known.nats
        return Known(accuracy, nats)

    @functools.lru_cache(maxsize=1 << 10)  # noqa: B019 (a task lives as long as its process)
    def _known_of(self, part: str, shots: int) -> Known:
        """The same for a question about one part, after so many shots about it."""
        accuracy = nats = 0.0
        for left, chance in self._left(part, shots).items():
            splits = self._splits(part, left)
            for groups in splits:
                shares = [len(group) / len(left) for group in groups]
                accuracy += chance * max(shares) / len(splits)
                nats -= chance * sum(share * math.log(share) for share in shares) / len(splits)
        return Known(accuracy, nats)

    @functools.lru_cache(maxsize=1 << 10)  # noqa: B019
    def _left(self, part: str, shots: int) -> dict[Values, float]:
        """Which values of a part are left after so many shots about it, with the chance of that."""
        if not shots:
            return {frozenset(range(len(self.parts[part]))): 1.0}
        after: dict[Values, float] = {}
        for left, chance in self._left(part, shots - 1).items():
            splits = self._splits(part, left)
            for group in itertools.chain.from_iterable(splits):
                after[group] = after.get(group, 0.0) + chance * len(group) / len(left) / len(splits)
        return after

    @functools.lru_cache(maxsize=1 << 10)  # noqa: B019
    def _splits(self, part: str, left: Values) -> list[list[Values]]:
        """Of each question about `part`, the values `left` by the answer that they give."""
        splits = []
        for question in self.questions:
            if question.part == part:
                groups: dict[str, list[int]] = {}
                for value in left:
                    groups.setdefault(question.answers[value], []).append(value)
                splits.append([frozenset(group) for group in groups.values()])
        return splits

    def _lesson(self, generator: random.Random, lines: int) -> Lesson:
        def pick(count: int) -> int:
            return int(generator.random() * count)

        rule = {part: pick(len(values)) for part, values in self.parts.items()}
        drawn = [self.questions[pick(len(self.questions))] for _ in range(lines)]
        shots = tuple(Shot(question, question.answers[rule[question.part]]) for question in drawn)
        return Lesson({part: values[rule[part]] for part, values in self.parts.items()}, shots)


def _modular(size: int) -> InContext:
    """Sums a + b modulo a number, which is the rule: the last `size` from 5 to 10."""
    moduli, digits = range(11 - size, 11), range(10)
    questions = [
        Question(f"{a} + {b} =", "modulus", tuple(str((a + b) % modulus) for modulus in moduli))
        for a, b in itertools.product(digits, digits)
    ]
    return InContext("modular", {"modulus": [str(modulus) for modulus in moduli]}, questions)


def _copy(size: int) -> InContext:
    """So many letters written again in another order, which is the rule."""
    orders = list(itertools.permutations(range(size)))
    questions = [
        Question(f"{' '.join(word)} >", "order", tuple(" ".join(word[place] for place in order) for order in orders))
        for word in itertools.product("abcdefgh", repeat=size)
    ]
    return InContext("copy", {"order": ["".join(str(place + 1) for place in order) for order in orders]}, questions)


def _lookup(size: int) -> InContext:
    """So many keys, each with a digit that it stands for: the parts of the rule."""
    keys, digits = "abcdefgh"[:size], tuple("0123456789")
    return InContext("lookup", dict.fromkeys(keys, digits), [Question(f"{key} :", key, digits) for key in keys])


def _words(size: int) -> InContext:
    """Word problems of one digit, with so many made-up verbs, each of which gains, loses or keeps."""
    signs = {"gains": 1, "loses": -1, "keeps": 0}
    verbs = ("daxes", "wugs", "blicks")[:size]
    questions = [
        Question(f"{who} has {a} and {verb} {b} :", verb, tuple(str(a + sign * b) for sign in signs.values()))
        for who, a, verb, b in itertools.product(("Ann", "Bob", "Eve"), range(3, 7), verbs, range(1, 4))
    ]
    return InContext("words", {verb: list(signs) for verb in verbs}, questions)


_TASKS: dict[str, tuple[Callable[[int], InContext], int, int]] = {
    "modular": (_modular, 2, 6),
    "copy": (_copy, 2, 3),
    "lookup": (_lookup, 1, 8),
    "words": (_words, 1, 3),
}
"""How each is made, its smallest size and its largest, which is the default."""
TASKS = tuple(_TASKS)
"""Names of the tasks."""


@functools.cache
def task(name: str, size: int | None = None) -> InContext:
    """The task of this name: of `size` moduli, letters, keys or verbs, None: as many as it can have.

    Raises:
        UserError: an unknown task, or a size that it cannot have.
    """
    if name not in _TASKS:
        raise UserError(f"{NAME}: unknown task '{name}'{suggest(name, TASKS)}: choose from {', '.join(TASKS)}")
    make, least, most = _TASKS[name]
    if size is not None and not least <= size <= most:
        raise UserError(f"{NAME}:{name}: size = {size}: from {least} to {most}")
    return make(most if size is None else size)


def is_in_context(spec: str) -> bool:
    """Whether a source is one of these tasks."""
    return spec.partition(":")[0] == NAME


@dataclass(frozen=True)
class Documents:
    """Documents of a task: so many of a stream, each with so many shots and a question after them.

    Attributes:
        size: of the task (see `task`).
    """

    name: str
    size: int
    shots: int
    documents: int
    seed: int

    @property
    def task(self) -> InContext:
        """The task that they are of."""
        return task(self.name, self.size)

    @property
    def spec(self) -> str:
        """The source that `parse` reads back."""
        numbers = (f"{name}={getattr(self, name)}" for name in ("size", *DEFAULTS))
        return f"{NAME}:{self.name},{','.join(numbers)}"

    def lessons(self) -> Iterator[Lesson]:
        """The documents, from the first on."""
        return self.task.lessons(self.seed, self.documents, self.shots)


def parse(spec: str, defaults: Mapping[str, int] | None = None) -> Documents:
    """The documents of `in-context:modular` or `in-context:modular,size=6,shots=12,documents=10000,seed=0`.

    Args:
        defaults: of the options that are left out, but for the size; `DEFAULTS` when None.

    Raises:
        UserError: no task or an unknown one, an unknown option, or a value that is none.
    """
    name, *settings = spec.partition(":")[2].split(",")
    if not name or "=" in name:
        raise UserError(f"{spec}: names no task: {NAME}:NAME, of {', '.join(TASKS)}")
    task(name)  # says what is wrong with the name
    options = whole_numbers(spec, settings, {"size": _TASKS[name][2], **(defaults or DEFAULTS)})
    found = Documents(name=name, **options)
    task(name, found.size)
    return found


def for_scoring(spec: str) -> str:
    """The spec of documents that nobody trained on: of another stream, and 1000, unless `spec` says otherwise."""
    return parse(spec, DEFAULTS | SCORING).spec


def read_in_context(spec: str) -> Iterator[Document]:
    """The documents of a spec (see `parse`)."""
    found = parse(spec)
    return found.task.documents(found.seed, found.documents, found.shots)
