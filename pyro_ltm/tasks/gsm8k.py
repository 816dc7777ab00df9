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
from pyro_ltm.inference import Parts, generate
from pyro_ltm.inference.generation import Codec
from pyro_ltm.model import DecodingOptions
from pyro_ltm.noise import fold
from pyro_ltm.reading import LARGEST_JSON, parse_json, read_bytes
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


@dataclass(frozen=True)
class Attempt:
    """What was written for one problem: the texts, and which of them are right."""

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
        temperature, max_new_tokens, seed: of the writing. fast_steps: of each fit.
        extraction: how answers were read.
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
    told = "".join(f"Question: {shot.question}\nAnswer: {shot.answer}\n\n" for shot in shots)
    return f"{told}Question: {question}\nAnswer:"


def attempt(
    parts: Parts,
    codec: Codec,
    problems: Sequence[Problem],
    examples: Sequence[Problem],
    *,
    shots: int = 10,
    samples: int = 5,
    temperature: float = 0.7,
    max_new_tokens: int = 256,
    fast_steps: int | None = None,
    seed: int = 0,
) -> Iterator[Attempt]:
    """Writes answers to each problem: thoughts fitted on its prompt alone, each sample with a draw of its own.

    Examples are drawn anew for each problem. Where the prompt and `max_new_tokens` do not fit the model's length,
    examples are left out from the front; where the question alone does not fit, nothing is written.

    Raises:
        UserError: more examples asked for than there are, or no room to write in.
    """
    room = parts.model.config.max_length
    if shots > len(examples):
        raise UserError(f"shots = {shots}: there are {len(examples)} examples")
    if not 0 < max_new_tokens < room:
        raise UserError(f"max_new_tokens = {max_new_tokens}: from 1 to {room - 1}, for this model reads {room} tokens")
    sampler = DecodingOptions(temperature=temperature)
    for number, problem in enumerate(problems):
        chosen = random.Random(f"{seed}:{number}").sample(list(examples), shots)
        while len(codec.encode(prompt_of(chosen, problem.question))) + max_new_tokens > room and chosen:
            chosen.pop(0)
        prompt = prompt_of(chosen, problem.question)
        fits = len(codec.encode(prompt)) + max_new_tokens <= room
        texts: list[str] = []
        if fits:
            written = generate(
                parts,
                codec,
                prompt=prompt,
                num=samples,
                max_new_tokens=max_new_tokens,
                sampler=sampler,
                fast_steps=fast_steps,
                seed=fold(seed, number),
            )
            texts = [one.text for one in written]
        expected = extract_answer(problem.answer)
        right = [extract_answer(text) == expected for text in texts]
        yield Attempt(problem.question, problem.answer, len(chosen) if fits else -1, texts, right)


def evaluate_arithmetic(
    parts: Parts,
    codec: Codec,
    problems: Sequence[Problem],
    examples: Sequence[Problem],
    *,
    k: int = 5,
    samples: int = 0,
    shots: int = 10,
    temperature: float = 0.7,
    max_new_tokens: int = 256,
    fast_steps: int | None = None,
    seed: int = 0,
    keep: Callable[[Attempt], None] | None = None,
) -> Arithmetic:
    """pass@1 and pass@k of a model (the paper, arXiv:2502.01567, reports pass@5 with 10 examples).

    Args:
        samples: for each problem; at least k, which is the default.
        fast_steps: of each fit; None: the model's own.
        keep: sees each attempt as it is made.

    Raises:
        UserError: fewer samples than k; or as `attempt`.
    """
    samples = samples or k
    if samples < k:
        raise UserError(f"samples = {samples}: at least k = {k}")
    shape: dict[str, Any] = {
        "shots": shots,
        "samples": samples,
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }
    attempts = []
    for one in attempt(parts, codec, problems, examples, fast_steps=fast_steps, **shape):
        attempts.append(one)
        if keep:
            keep(one)
    counts = sorted({1, k})
    shares = {n: [pass_at_k(samples, sum(one.right), n) for one in attempts] for n in counts}
    size = len(attempts)
    mean = {n: sum(values) / size for n, values in shares.items()}
    fitting = [one.shots for one in attempts if one.shots >= 0]
    return Arithmetic(
        pass_at={str(n): mean[n] for n in counts},
        pass_at_stderr={
            str(n): math.sqrt(sum((v - mean[n]) ** 2 for v in shares[n]) / max(1, size - 1) / size) for n in counts
        },
        problems=size,
        shots_kept=sum(fitting) / len(fitting) if fitting else 0.0,
        too_long=size - len(fitting),
        fast_steps=parts.steps(fast_steps),
        **shape,
    )
