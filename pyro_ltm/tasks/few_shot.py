"""Tasks learned in context: how often a run answers rightly after so many shots, beside its twin and the best there is.

A prompt is the shots of a document, then a question; thoughts are fitted to the prompt alone, and its answer is scored
under the mixture over K fresh draws. What can be known after the shots is known exactly (`pyro_ltm.data.in_context`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_ltm.data.in_context import InContext, Lesson, for_scoring, is_in_context, parse
from pyro_ltm.errors import UserError
from pyro_ltm.inference.codec import Codec, encoded_after
from pyro_ltm.runs.run import Run
from pyro_ltm.scores.continuation import Context, Piece, Predictor, Scored
from pyro_ltm.scores.estimate import Count, mean_error, plain
from pyro_ltm.scores.filling import Filler

SHOTS = (0, 1, 2, 4, 8, 12)
DOCUMENTS = 128
MEANING = (
    "exact match: each token of the answer is the likeliest, after the right ones before it; choice: the answer is the "
    "likeliest of those that the question can have; best: of one who knows the task and reads the same shots, exactly"
)
OF_BOUND = "an answer's nats are the bound of a masked diffusion, the mean over orders in which it is filled in"


class Scorer(Protocol):
    """Scores continuations: a `Predictor`, a `Filler`, or who knows better."""

    def score(self, pieces: Sequence[Piece]) -> list[Scored]:
        """Each piece's score, in their order."""


@dataclass(frozen=True, kw_only=True)
class AfterShots:
    """Answers after so many shots; errors are over documents.

    Attributes:
        exact_match: share of answers each of whose tokens is the likeliest. choice: share that are the likeliest of
            their question's possible answers. nats: mean of -log p(answer).
        right, answer_nats: float64 [S], of each document, for paired differences. Not in `plain`.
    """

    shots: int
    exact_match: float
    exact_match_stderr: float
    choice: float
    choice_stderr: float
    nats: float
    nats_stderr: float
    right: Tensor = field(repr=False, compare=False)
    answer_nats: Tensor = field(repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class BestAfterShots:
    """Accuracy and nats, in expectation over documents, of one who knows the task; after no shots: of chance."""

    shots: int
    accuracy: float
    nats: float


@dataclass(frozen=True)
class Above:
    """How much more often a run is right than its twin, on the same documents, with the paired standard error."""

    shots: int
    exact_match: float
    stderr: float


@dataclass(frozen=True, kw_only=True)
class FewShot:
    """Accuracy against shots.

    Attributes:
        task: its name. source: the documents, which nobody trained on. documents: how many of them.
        answers: after each number of shots; twin_answers: of the twin, where there is one. best: all that can be known.
        above_twin: how much more often the run is right (exact match), paired by document, for each number of shots.
        particles, fast_steps, seed: how it was measured. meaning: of the figures.
    """

    task: str
    source: str
    documents: int
    answers: list[AfterShots]
    twin_answers: list[AfterShots] | None
    best: list[BestAfterShots]
    above_twin: list[Above] | None
    particles: int
    fast_steps: int
    seed: int
    meaning: str = MEANING

    def to_dict(self) -> dict[str, Any]:
        """For JSON; errors of a single document are None."""
        return plain(self)


def evaluate_few_shot(
    run: Run,
    source: str | None = None,
    *,
    twin: Run | None = None,
    shots: Sequence[int] = (),
    documents: int = DOCUMENTS,
    particles: int = 16,
    fast_steps: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    counting: Callable[[str, int], Count] | None = None,
) -> FewShot:
    """Scores `run`, and its twin on the same documents, on a task that is learned in context.

    Args:
        source: such as `in-context:lookup`, of which new documents are drawn; None: what the run was trained on.
        shots: numbers of them; none: those of `SHOTS` that a document has.
        documents: at most so many. particles: draws K of the mixture.
        fast_steps: of each fit; None: as many as in training.
        counting: begins to count the numbers of shots that are done, of so many, and gives what is called with the
            progress.

    Raises:
        UserError: no such task, or more shots than a document has or than the model reads.
    """
    spec = for_scoring(source or source_of(run))
    asked = parse(spec)
    shots = sorted(set(shots)) or [count for count in SHOTS if count <= asked.shots]
    if shots[-1] > asked.shots:
        raise UserError(f"shots = {shots[-1]}: documents of {spec} have {asked.shots}; more of them: ,shots=N")
    lessons = list(itertools.islice(asked.lessons(), documents))
    found = {}
    for name, one in {"run": run, "twin": twin}.items():
        if one is not None:
            how: dict[str, Any] = {"particles": particles, "batch_size": batch_size, "seed": seed}
            scorer = _scorer(one, fast_steps, how)
            count = counting(f"few-shot: {name}", len(shots)) if counting else None
            found[name] = _curve(scorer, one, lessons, shots, count)
    return FewShot(
        task=asked.name,
        source=spec,
        documents=len(lessons),
        answers=found["run"],
        twin_answers=found.get("twin"),
        best=[_best(asked.task, number) for number in shots],
        above_twin=[_above(*pair) for pair in zip(found["run"], found["twin"], strict=True)] if twin else None,
        particles=1 if run.config.model.is_exact else particles,
        fast_steps=run.loop.with_steps(fast_steps).steps,
        seed=seed,
        meaning=f"{MEANING}; {OF_BOUND}" if run.config.model.is_diffusion else MEANING,
    )


def _scorer(run: Run, fast_steps: int | None, how: dict[str, Any]) -> Scorer:
    """Who scores answers by a run."""
    if run.config.model.is_diffusion:
        return Filler(run.model, run.sequence_length, **how)
    return Predictor(run.model, run.loop.with_steps(fast_steps), **how)


def source_of(run: Run) -> str:
    """The task that a run was trained on. Raises UserError where that is no such task, or several."""
    try:
        specs = run.dataset("train").meta["sources"]
    except UserError:
        specs = []
    known = [parse(spec) for spec in specs if is_in_context(spec)]
    shapes = {(one.name, one.size, one.shots) for one in known}
    if len(known) != len(specs) or len(shapes) != 1:
        raise UserError(f"{run.folder}: was not trained on one task of in-context; name one, such as in-context:lookup")
    return "in-context:{},size={},shots={}".format(*shapes.pop())


def score_lessons(scorer: Scorer, codec: Codec, lessons: Sequence[Lesson], shots: int) -> AfterShots:
    """The answers to the question after so many shots of each document; its noise is keyed by document and shots."""
    pieces: list[Piece] = []
    for number, lesson in enumerate(lessons):
        pieces += _pieces(codec, lesson, shots, name=number << 16 | shots)
    scores = iter(scorer.score(pieces))
    rows = []
    for lesson in lessons:
        shot = lesson.shots[shots]
        of = {answer: next(scores) for answer in dict.fromkeys(shot.question.answers)}
        mine = of[shot.answer]
        likeliest = max(of, key=lambda answer: of[answer].log_likelihood)
        rows.append((mine.is_greedy, likeliest == shot.answer, -mine.log_likelihood))
    right, chosen, nats = torch.tensor(rows, dtype=torch.float64).unbind(1)
    return AfterShots(
        shots=shots,
        exact_match=float(right.mean()),
        exact_match_stderr=mean_error(right, None).stderr,
        choice=float(chosen.mean()),
        choice_stderr=mean_error(chosen, None).stderr,
        nats=float(nats.mean()),
        nats_stderr=mean_error(nats, None).stderr,
        right=right,
        answer_nats=nats,
    )


def _pieces(codec: Codec, lesson: Lesson, shots: int, name: int) -> Iterator[Piece]:
    """One for each answer that the question can have, under any rule."""
    prompt = lesson.prompt(shots)
    for answer in dict.fromkeys(lesson.shots[shots].question.answers):
        before, after = encoded_after(codec.encode, prompt, f" {answer}")
        yield Piece(Context((codec.end_of_text, *before), name), tuple(after))


def _curve(
    scorer: Scorer, run: Run, lessons: Sequence[Lesson], shots: Sequence[int], count: Count | None
) -> list[AfterShots]:
    """`score_lessons` after each number of shots. Raises UserError where the most are more than the run reads."""
    longest = run.config.model.max_length
    pieces = [piece for lesson in lessons for piece in _pieces(run.tokenizer, lesson, shots[-1], 0)]
    size = max(len(piece.context.tokens) + len(piece.continuation) for piece in pieces) - 1
    if size > longest:
        raise UserError(
            f"shots = {shots[-1]}: with a question and its answer they are {size} tokens, and {run.folder} reads at "
            f"most {longest}: fewer shots"
        )
    curve = []
    for done, number in enumerate(shots, 1):
        curve.append(score_lessons(scorer, run.tokenizer, lessons, number))
        if count:
            count(done, math.nan)
    return curve


def _best(task: InContext, shots: int) -> BestAfterShots:
    known = task.known_after(shots)
    return BestAfterShots(shots=shots, accuracy=known.accuracy, nats=known.nats)


def _above(mine: AfterShots, its: AfterShots) -> Above:
    gap = mine.right - its.right
    return Above(mine.shots, float(gap.mean()), mean_error(gap, None).stderr)
