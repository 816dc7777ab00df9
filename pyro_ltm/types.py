"""Types that several rooms share: a batch of sequences, the local parameters of its posteriors, a registry.

Shapes throughout the project: B sequences, T tokens, L layers, N thoughts in all (N/L per layer), D width,
V vocabulary, K particles.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from pyro_ltm.config import Component, suggest
from pyro_ltm.errors import UserError

State = dict[str, Tensor]
"""Local variational parameters: tensors with leading dimension B that live for one batch."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B token sequences, each predicted from its first input and its thoughts.

    Shapes:
        inputs: [B, T] int64, the tokens read; `inputs[:, t + 1] == targets[:, t]` wherever both are known.
        targets: [B, T] int64, the tokens predicted; None leaves the site `tokens` unobserved, so the model writes them.
        mask: [B, T] bool, True where a target counts.
        ids: [B] int64, stable names of the sequences; a sequence's noise is keyed by its id.
        context: [B, T, D] what the thoughts cannot touch (`Decoder.context`), computed once for many fast steps;
            None until `LatentThoughtModel.precompute` fills it in.
    """

    inputs: Tensor
    targets: Tensor | None
    mask: Tensor
    ids: Tensor
    context: Tensor | None = None

    @classmethod
    def from_tokens(cls, tokens: Tensor, *, ids: Tensor | None = None) -> Batch:
        """A batch from whole sequences [B, T + 1]: the first token is given, the other T are predicted."""
        if tokens.shape[-1] < 2:
            raise UserError(f"a sequence needs at least two tokens, got {tokens.shape[-1]}")
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        ids = torch.arange(len(tokens), device=tokens.device) if ids is None else ids
        return cls(inputs=inputs, targets=targets, mask=torch.ones_like(targets, dtype=torch.bool), ids=ids)

    @classmethod
    def from_lists(cls, sequences: Sequence[Sequence[int]], *, pad: int) -> Batch:
        """A batch from sequences of unlike lengths, each of at least two tokens, filled up with `pad` and masked."""
        longest = max(len(sequence) for sequence in sequences)
        tokens = torch.full((len(sequences), longest), pad, dtype=torch.int64)
        for row, sequence in enumerate(sequences):
            tokens[row, : len(sequence)] = torch.tensor(sequence)
        lengths = torch.tensor([len(sequence) for sequence in sequences])
        batch = cls.from_tokens(tokens)
        return dataclasses.replace(batch, mask=torch.arange(1, longest) < lengths[:, None])

    @property
    def size(self) -> int:
        """Sequences B."""
        return self.inputs.shape[0]

    @property
    def length(self) -> int:
        """Tokens T in a sequence."""
        return self.inputs.shape[1]

    def tokens(self) -> Tensor:
        """Targets that count, over the whole batch: an int64 scalar."""
        return self.mask.sum()

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        moved = {
            entry.name: value.to(device, non_blocking=True)
            for entry in dataclasses.fields(self)
            if (value := getattr(self, entry.name)) is not None
        }
        return dataclasses.replace(self, **moved)

    def unobserved(self) -> Batch:
        """The same batch with its targets taken away: the model writes them."""
        return dataclasses.replace(self, targets=None)

    def select(self, rows: Tensor) -> Batch:
        """The sequences at `rows` (int64 [B'])."""
        picked = {
            entry.name: value[rows]
            for entry in dataclasses.fields(self)
            if (value := getattr(self, entry.name)) is not None
        }
        return dataclasses.replace(self, **picked)


T = TypeVar("T")


class Registry(Generic[T], Mapping[str, type[T]]):
    """Names to classes, once per axis, used only at the edge (command line, TOML)."""

    def __init__(self, axis: str, members: Mapping[str, type[T]]):
        self.axis = axis
        self._members = dict(members)

    def __getitem__(self, name: str) -> type[T]:
        if name not in self._members:
            raise UserError(f"unknown {self.axis} '{name}'{suggest(name, self)}: choose from {', '.join(self)}")
        return self._members[name]

    def __contains__(self, name: object) -> bool:
        return name in self._members  # Mapping's own asks `[]`, which raises UserError and no KeyError

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def build(self, component: Component, **shared: Any) -> T:
        """The member that `component` names, with its options; `shared` arguments go only to classes that take them.

        Raises:
            UserError: unknown name, unknown option, or an option of the wrong type or out of its range.
        """
        member = self[component.name]
        parameters = inspect.signature(member).parameters
        for key, value in component.options.items():
            if key not in parameters or key in shared:
                known = [name for name in parameters if name not in shared]
                raise UserError(
                    f"unknown option {self.axis}.{key}{suggest(key, known)}: "
                    f"'{component.name}' takes {', '.join(known) or 'none'}"
                )
            _check_type(f"{self.axis}.{key}", value, parameters[key].default)
        taken = {key: value for key, value in shared.items() if key in parameters}
        # 1 is a fine way to write 1.0, but a tensor made of it would hold whole numbers.
        options = {
            key: float(value) if isinstance(parameters[key].default, float) else value
            for key, value in component.options.items()
        }
        return member(**options, **taken)


def _check_type(name: str, value: Any, default: Any) -> None:
    wanted = type(default)
    good = isinstance(value, wanted) or (wanted is float and isinstance(value, int))
    if wanted in (bool, int, float, str) and (not good or (isinstance(value, bool) and wanted is not bool)):
        raise UserError(f"{name} = {value!r}: expected a value such as {default!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} = {value!r}: expected a finite number, such as {default!r}")
