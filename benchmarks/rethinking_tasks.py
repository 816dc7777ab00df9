"""Small tasks whose answers are known, each a text that ends with one: to learn from, and to be asked.

`modulus`: sums modulo a number that the text names. `rule`: a rule for two letters, seen in examples, applied to
another two. `lookup`: the value of a key that stood before. `words`: word problems in the shape of GSM8K, read as
`pyro_ltm.tasks.gsm8k` reads them.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pyro_ltm.files import write_text
from pyro_ltm.tasks.gsm8k import extract_answer, prompt_of

LETTERS = "abcdefgh"
RULES: dict[str, Callable[[str], str]] = {
    "copy": lambda s: s,
    "exchange": lambda s: s[::-1],
    "first twice": lambda s: s[0] * 2,
    "last twice": lambda s: s[1] * 2,
}


@dataclass(frozen=True)
class Exercise:
    """A text up to its answer, and the answer."""

    task: str
    prompt: str
    answer: str

    def is_right(self, text: str) -> bool:
        """Whether a continuation gives the answer: by its first word, its letters, or as GSM8K reads it."""
        if self.task == "words":
            return extract_answer(text) == extract_answer(self.answer)
        if self.task == "rule":
            return text.split(";")[0].split() == self.answer.split()
        found = re.match(r"\S*", text)
        return found is not None and found[0] == self.answer


def modulus(draw: random.Random) -> tuple[str, str]:
    """`mod 5: 3+4=2 2+2=4 1+3=`, six sums."""
    m = draw.randint(2, 6)
    sums = [(a, b, (a + b) % m) for a, b in ((draw.randrange(m), draw.randrange(m)) for _ in range(6))]
    *shown, (a, b, c) = sums
    return f"mod {m}:" + "".join(f" {x}+{y}={z}" for x, y, z in shown) + f" {a}+{b}=", str(c)


def rule(draw: random.Random) -> tuple[str, str]:
    """`rule: a b > b a; d f > f d; g a >`, a letter a token, five words."""
    apply = RULES[draw.choice(list(RULES))]
    *shown, last = ("".join(draw.choices(LETTERS, k=2)) for _ in range(5))
    before = "".join(f"{_spaced(one)} >{_spaced(apply(one))};" for one in shown)
    return f"rule:{before}{_spaced(last)} >", _spaced(apply(last))


def _spaced(letters: str) -> str:
    return "".join(f" {letter}" for letter in letters)


def lookup(draw: random.Random) -> tuple[str, str]:
    """`a=3 c=9 f=1 ? f=1 a=`, four keys."""
    table = {key: draw.randrange(10) for key in draw.sample(LETTERS, 4)}
    *before, last = draw.choices(list(table), k=4)
    said = " ".join(f"{key}={value}" for key, value in table.items())
    asked = "".join(f" {key}={table[key]}" for key in before)
    return f"{said} ?{asked} {last}=", str(table[last])


def words(draw: random.Random) -> tuple[str, str]:
    """A word problem of one or two steps."""
    name, what = draw.choice(["Tom", "Ann", "Max", "Eva"]), draw.choice(["apples", "books", "pens", "cups"])
    have, more = draw.randint(2, 9), draw.randint(1, 9)
    question, steps, total = f"{name} has {have} {what}. {name} buys {more}.", f"{have} + {more}", have + more
    if draw.random() < 0.5:
        gone = draw.randint(1, total - 1)
        question += f" {name} gives away {gone}."
        steps, total = f"{steps} - {gone}", total - gone
    return prompt_of([], f"{question} How many {what} has {name} now?"), f" {steps} = {total}\n#### {total}"


TASKS: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "modulus": modulus,
    "rule": rule,
    "lookup": lookup,
    "words": words,
}


def exercises(task: str, count: int, seed: int, without: frozenset[str] = frozenset()) -> list[Exercise]:
    """So many different ones, none of whose prompts is in `without`."""
    draw, found = random.Random(f"{task}:{seed}"), dict[str, Exercise]()
    while len(found) < count:
        prompt, answer = TASKS[task](draw)
        if prompt not in without:
            found[prompt] = Exercise(task, prompt, answer)
    return list(found.values())


def write_documents(path: Path, count: int, seed: int) -> frozenset[str]:
    """`count` texts of all tasks in turn, answers included, as a .jsonl file; gives their prompts."""
    each = [exercises(task, count // len(TASKS), seed) for task in TASKS]
    mixed = [one for together in zip(*each, strict=True) for one in together]
    write_text(path, "".join(json.dumps({"text": one.prompt + one.answer}) + "\n" for one in mixed))
    return frozenset(one.prompt for one in mixed)
