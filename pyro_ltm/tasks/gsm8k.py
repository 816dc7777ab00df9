"""Grade-school arithmetic, few-shot: pass@k on GSM8K (arXiv:2110.14168) and on any file of its shape."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_ltm.errors import UserError
from pyro_ltm.inference import Rethinking
from pyro_ltm.model import DecodingOptions
from pyro_ltm.noise import fold
from pyro_ltm.reading import LARGEST_JSON, parse_json, read_bytes
from pyro_ltm.runs.run import Run
from pyro_ltm.scores.estimate import plain

EXTRACTION = (
    "the answer is the first number after the first '####'; without one, the last number of the text; what follows the "
    "next 'Question:' is cut off; '$', ',' and a final '.' are dropped, and numbers are compared by value"
)
"""How an answer is read off a text."""

NUMBER = re.compile(r"-?\$?-?\d[\d,]*(?:\.\d+)?|-?\$?\.\d+")


@dataclass(frozen=True)
class Problem:
    """A question, and its answer: the reasoning, `####`, and a number."""

    question: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class ArithmeticOptions:
    """How problems are put to a model.

    Attributes:
        k: samples of which one must be right. samples: for each problem, at least k; 0: k.
        shots: examples in each prompt.
        temperature, max_new_tokens, seed: of the writing. fast_steps: of each fit; None: as many as in training.
        rethinking: how often thoughts are fitted to an answer, and it is written again; None: never.

    Raises:
        UserError: fewer samples than k.
    """

    k: int = 5
    samples: int = 0
    shots: int = 10
    temperature: float = 0.7
    max_new_tokens: int = 256
    fast_steps: int | None = None
    rethinking: Rethinking | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", self.samples or self.k)
        if self.samples < self.k:
            raise UserError(f"samples = {self.samples}: at least k = {self.k}")


@dataclass(frozen=True)
class Attempt:
    """The texts that were written for one problem, and which of them are right; `shots` is -1 where it was too long."""

    question: str
    expected: str
    shots: int
    texts: list[str]
    right: list[bool]


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """Few-shot accuracy.

    Attributes:
        pass_at: for 1 and for k, the share of problems of which at least one of so many samples is right, by the
            unbiased estimator of arXiv:2107.03374; pass_at_stderr: over problems.
        problems, samples, shots: what was asked for; shots_kept: mean number of examples that fitted the prompt.
        too_long: problems that did not fit even without an example; they count as wrong.
        temperature, max_new_tokens, fast_steps, seed: of `ArithmeticOptions`. extraction: how answers were read.
        rethink, refit_every: rounds of rethinking, and tokens between fits while an answer is written.
    """

    pass_at: dict[str, float]
    pass_at_stderr: dict[str, float]
    problems: int
    samples: int
    shots: int
    shots_kept: float
    too_long: int
    temperature: float
    max_new_tokens: int
    fast_steps: int
    seed: int
    extraction: str = EXTRACTION
    rethink: int = 0
    refit_every: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return plain(self)


def read_problems(path: Path) -> list[Problem]:
    """The problems of a .jsonl file with the fields `question` and `answer`.

    Raises:
        UserError: the file cannot be read, or a line is no problem, with its number.
    """
    try:
        lines = read_bytes(path, LARGEST_JSON).splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: cannot be read: no such file") from None
    problems = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            problem = parse_json(line, Problem)
        except UserError as error:
            raise UserError(f"{path}:{number}: expected an object with 'question' and 'answer': {error}") from None
        if extract_answer(problem.answer) is None:
            raise UserError(f"{path}:{number}: its answer has no number (expected '... #### 42')")
        problems.append(problem)
    if not problems:
        raise UserError(f"{path}: no problems in it")
    return problems


def extract_answer(text: str) -> float | None:
    """The answer that a text gives (see `EXTRACTION`); None where there is no number."""
    text = text.split("Question:")[0]
    if "####" in text:
        found = NUMBER.search(text.split("####", 1)[1])
        numbers = [found.group()] if found else []
    else:
        numbers = NUMBER.findall(text)[-1:]
    if not numbers:
        return None
    value = float(numbers[0].replace("$", "").replace(",", ""))
    return value if math.isfinite(value) else None


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Chance that at least one of k samples is right, unbiased, from `right` of so many (arXiv:2107.03374)."""
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def prompt_of(shots: Sequence[Problem], question: str) -> str:
    """Examples with their answers, then the question."""
    shown = "".join(f"Question: {shot.question}\nAnswer: {shot.answer}\n\n" for shot in shots)
    return f"{shown}Question: {question}\nAnswer:"


def attempt(
    run: Run, problems: Sequence[Problem], examples: Sequence[Problem], options: ArithmeticOptions
) -> Iterator[Attempt]:
    """Writes answers to each problem: thoughts fitted on its prompt only, each sample with a draw of its own.

    Examples are drawn anew for each problem, which is never one of its own. Where the prompt and `max_new_tokens` do
    not fit the model's length, examples are left out from the front; where even the question does not fit, nothing is
    written.

    Raises:
        UserError: more examples asked for than there are, or no room to write in.
    """
    length, new = run.config.model.max_length, options.max_new_tokens
    if options.shots > len(examples):
        raise UserError(f"shots = {options.shots}: there are {len(examples)} examples")
    if not 0 < new < length:
        raise UserError(f"max_new_tokens = {new}: from 1 to {length - 1}, for this model reads {length} tokens")
    for number, problem in enumerate(problems):
        others = [example for example in examples if example.question != problem.question]
        if options.shots > len(others):
            raise UserError(f"shots = {options.shots}: there are {len(others)} examples beside a problem itself")
        chosen = random.Random(f"{options.seed}:{number}").sample(others, options.shots)

        def fits(shots: Sequence[Problem], question: str = problem.question) -> bool:
            return len(run.tokenizer.encode(prompt_of(shots, question))) + new <= length

        while chosen and not fits(chosen):
            chosen.pop(0)
        shots = len(chosen) if fits(chosen) else -1
        texts = _write(run, prompt_of(chosen, problem.question), options, number) if shots >= 0 else []
        expected = extract_answer(problem.answer)
        yield Attempt(problem.question, problem.answer, shots, texts, [extract_answer(t) == expected for t in texts])


def _write(run: Run, prompt: str, options: ArithmeticOptions, number: int) -> list[str]:
    """The samples for the problem of this number."""
    written = run.generate(
        prompt=prompt,
        num=options.samples,
        max_new_tokens=options.max_new_tokens,
        sampler=DecodingOptions(temperature=options.temperature),
        fast_steps=options.fast_steps,
        rethinking=options.rethinking,
        seed=fold(options.seed, number),
    )
    return [one.text for one in written]


def evaluate_arithmetic(
    run: Run,
    problems: Sequence[Problem],
    examples: Sequence[Problem],
    *,
    on_attempt: Callable[[Attempt], None] | None = None,
    **options: Any,
) -> Arithmetic:
    """pass@1 and pass@k of a run (the paper, arXiv:2502.01567, reports pass@5 with 10 examples).

    Args:
        on_attempt: sees each attempt as it is made.
        options: see `ArithmeticOptions`.

    Raises:
        UserError: fewer samples than k; or as `attempt`.
    """
    how, attempts = ArithmeticOptions(**options), []
    for one in attempt(run, problems, examples, how):
        attempts.append(one)
        if on_attempt:
            on_attempt(one)
    shares = {n: [pass_at_k(how.samples, sum(one.right), n) for one in attempts] for n in sorted({1, how.k})}
    size, fitting = len(attempts), [one.shots for one in attempts if one.shots >= 0]
    mean = {n: sum(values) / size for n, values in shares.items()}
    squares = {n: sum((value - mean[n]) ** 2 for value in values) for n, values in shares.items()}
    again = how.rethinking or Rethinking()
    asked = ("samples", "shots", "temperature", "max_new_tokens", "seed")
    return Arithmetic(
        pass_at={str(n): mean[n] for n in shares},
        pass_at_stderr={str(n): math.sqrt(squares[n] / max(1, size - 1) / size) for n in shares},
        problems=size,
        shots_kept=sum(fitting) / len(fitting) if fitting else 0.0,
        too_long=size - len(fitting),
        fast_steps=run.loop.with_steps(how.fast_steps).steps,
        rethink=again.rounds,
        refit_every=again.refit_every,
        **{name: getattr(how, name) for name in asked},
    )
