"""How much of a text is written again from its thoughts alone, and of two texts from between their thoughts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_ltm.model import DecodingOptions, sample_tokens
from pyro_ltm.runs import Run
from pyro_ltm.thoughts.diagnostics import Thoughts

REWRITTEN = 100
"""Texts that are written again, spread over the set."""


@torch.no_grad()
def rewritten(run: Run, thoughts: Thoughts) -> dict[str, dict[str, float]]:
    """Texts from posterior means and from midpoints of two, the likeliest token each time; shares of tokens.

    `written_again`. `in_place`: of the tokens those that stand where they stood. `shared`: of the tokens of both texts
    together, those that both have, wherever; `by_chance`: the same with what is written from another text's thoughts.

    `between`: what is shared with the one of two texts with which it is less, so that nothing is gained by being one of
    them. `midpoint`: by what is written from between their thoughts; `end`: from the thoughts of one of them;
    `by_chance`: from between two other texts. Where texts are sorted by four kinds the two are of different kinds, and
    the two others are of the two kinds that remain.
    """
    true, z = _chosen(thoughts)
    half = len(true) // 2
    again = _written(run, z, max(map(len, true)))
    middle = _written(run, (z[:half] + z[half : 2 * half]) / 2, again.shape[1])
    in_place = [float((text == new[: len(text)]).double().mean()) for text, new in zip(true, again, strict=True)]
    pairs = list(zip(true[:half], true[half:], strict=False))
    return {
        "written_again": {
            "in_place": _mean(in_place),
            "shared": _mean([_shared(text, new) for text, new in zip(true, again, strict=True)]),
            "by_chance": _mean([_shared(text, new) for text, new in zip(true, again.roll(half, 0), strict=True)]),
        },
        "between": {
            "midpoint": _mean([_of_both(new, pair) for new, pair in zip(middle, pairs, strict=True)]),
            "end": _mean([_of_both(new, pair) for new, pair in zip(again[:half], pairs, strict=True)]),
            "by_chance": _mean(
                [_of_both(new, pair) for new, pair in zip(middle.roll(half // 2, 0), pairs, strict=True)]
            ),
        },
    }


def _chosen(thoughts: Thoughts) -> tuple[list[Tensor], Tensor]:
    """Tokens of the texts that are written again, and their posterior means, [N, ...]."""
    every = max(1, len(thoughts.counts) // REWRITTEN)
    true, means = [], []
    for batch, mean in zip(
        thoughts.batches, thoughts.means.split([each.size for each in thoughts.batches]), strict=True
    ):
        assert batch.targets is not None  # texts have them
        true += [target[mask] for target, mask in zip(batch.targets[::every], batch.mask[::every], strict=True)]
        means.append(mean[::every].to(batch.device))
    return true, torch.cat(means)


def _written(run: Run, z: Tensor, length: int) -> Tensor:
    """`length` tokens from each of the thoughts, [N, length]."""
    first = z.new_full((len(z), 1), run.tokenizer.end_of_text, dtype=torch.long)
    return sample_tokens(run.model.decoder, z, first, length, sampler=DecodingOptions(temperature=0))[:, 1:]


def _of_both(new: Tensor, pair: Sequence[Tensor]) -> float:
    return min(_shared(text, new) for text in pair)


def _shared(text: Tensor, new: Tensor) -> float:
    return overlap(text, new[: len(text)])


def _mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 4)


def overlap(true: Tensor, again: Tensor) -> float:
    """Twice the tokens that both have, over the tokens of both."""
    size = int(max(true.max(), again.max())) + 1
    both = torch.minimum(torch.bincount(true, minlength=size), torch.bincount(again, minlength=size)).sum()
    return float(2 * both / (len(true) + len(again)))
