"""Continuations of prompts, held against how people went on: MAUVE, bits a byte after the prompt, diversity."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyro_ltm.errors import UserError
from pyro_ltm.inference import Generated, Rethinking, continuation
from pyro_ltm.inference.codec import encoded_after
from pyro_ltm.inference.generation import room_after
from pyro_ltm.model import DecodingOptions
from pyro_ltm.runs.run import Run
from pyro_ltm.scores.estimate import plain
from pyro_ltm.tasks.mauve import Mauve, mauve
from pyro_ltm.tasks.prompts import Prompt, check_prompts
from pyro_ltm.tasks.text_metrics import TextMetrics, text_metrics
from pyro_ltm.tasks.written_texts import AfterPrompts, Scorer, Speed, timed

TRUTH = "truth"
"""Name of the side that people wrote."""


@dataclass(frozen=True)
class Side:
    """A run that writes after the prompts; rethinking: None where it writes once."""

    name: str
    run: Run
    rethinking: Rethinking | None = None


@dataclass(frozen=True, kw_only=True)
class Continuations:
    """Figures of one side's continuations.

    Attributes:
        metrics: of the continuations alone; None where they have no word.
        after_prompt: their nats after the prompts, under the scorer; exact of an autoregressive one, else of its
            predictive distribution.
        mauve: of the scorer's features of prompts and continuations together, against those of the truth; None for the
            truth itself, and for fewer than 10 texts.
        speed: None for the truth.
    """

    metrics: TextMetrics | None
    after_prompt: AfterPrompts | None = None
    mauve: Mauve | None = None
    speed: Speed | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON; figures that are not known are None."""
        return plain(self)


def sides_of(runs: Mapping[str, Run], rethinking: Rethinking) -> list[Side]:
    """Each run by itself, and those with thoughts once more with `rethinking`, where that does anything.

    Raises:
        UserError: no run has thoughts to fit again.
    """
    sides = []
    again = rethinking.rounds or rethinking.refit_every is not None
    for name, run in runs.items():
        sides.append(Side(name, run))
        if again and run.config.model.thoughts:
            rethinking.check(run.model, run.loop)
            sides.append(Side(f"{name}, {described(rethinking)}", run, rethinking))
    if again and len(sides) == len(runs):
        rethinking.check(run.model, run.loop)
    return sides


def described(rethinking: Rethinking) -> str:
    """Rethinking in a few words, for the name of a side."""
    words = [f"rethinking {rethinking.rounds}"] if rethinking.rounds else []
    return ", ".join([*words, *([f"refitting every {rethinking.refit_every}"] if rethinking.refit_every else [])])


def write_continuations(
    side: Side,
    prompts: Sequence[Prompt],
    *,
    num: int = 1,
    max_new_tokens: int | None = None,
    sampler: DecodingOptions | None = None,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
    seed: int = 0,
) -> tuple[list[Generated], Speed]:
    """`num` continuations of each prompt, and how fast they were written."""
    together = max(1, batch_size // num) * num
    return timed(
        side.run,
        min(together, len(prompts) * num),
        prompts=[prompt.text for prompt in prompts],
        num=num,
        max_new_tokens=max_new_tokens,
        sampler=sampler,
        rethinking=side.rethinking,
        batch_size=batch_size,
        progress=progress,
        seed=seed,
    )


def as_long(run: Run, prompts: Sequence[Prompt], max_new_tokens: int | None) -> list[Prompt]:
    """The prompts with their truths cut to as many tokens as the run may write. Raises UserError as `check_prompts`."""
    check_prompts(run, prompts, max_new_tokens)
    cut = []
    for prompt in prompts:
        assert prompt.truth is not None
        before, room = room_after(run.model, run.tokenizer, prompt.text, max_new_tokens)
        _, new = encoded_after(run.tokenizer.encode, prompt.text, prompt.truth)
        truth = prompt.truth if len(new) <= room else continuation(run.tokenizer, before, new[:room])
        cut.append(dataclasses.replace(prompt, truth=truth))
    return cut


def score_continuations(
    prompts: Sequence[Prompt],
    written: Mapping[str, tuple[Sequence[Generated], Speed]],
    scorer: Scorer | None = None,
    *,
    seed: int = 0,
) -> dict[str, Continuations]:
    """Figures of each side, and of the truth, which comes last.

    Args:
        prompts: with their truths.
        written: by side: equally many texts after each prompt, in the order of the prompts, and how fast they came.
        scorer: gives the nats after the prompts, and MAUVE's features.
        seed: of MAUVE's buckets.

    Raises:
        UserError: a side is called as the truth is.
    """
    if TRUTH in written:
        raise UserError(f"a side is called '{TRUTH}', as what people wrote: call it otherwise")
    given, truth = [prompt.text for prompt in prompts], [prompt.truth or "" for prompt in prompts]
    features = scorer.features([a + b for a, b in zip(given, truth, strict=True)]) if scorer else None
    found = {}
    for name, (texts, speed) in written.items():
        before, new = [one.prompt for one in texts], [one.text for one in texts]
        close = None
        if scorer is not None and features is not None and min(len(prompts), len(texts)) >= 10:
            own = scorer.features([a + b for a, b in zip(before, new, strict=True)])
            close = mauve(own, features, seed=seed)
        after = scorer.score_after(before, new) if scorer else None
        found[name] = Continuations(metrics=_metrics(new), after_prompt=after, mauve=close, speed=speed)
    after = scorer.score_after(given, truth) if scorer else None
    return found | {TRUTH: Continuations(metrics=_metrics(truth), after_prompt=after)}


def _metrics(texts: Sequence[str]) -> TextMetrics | None:
    return text_metrics(texts) if any(text.split() for text in texts) else None
