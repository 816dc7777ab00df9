"""The whole state of any torch optimizer as named tensors and numbers, and back again.

Names are those of `state_dict`: `0.exp_avg` for an entry of the first parameter, `0.Q.1` for one in a list of tensors,
`group.0.step` for what an optimizer counts in a group of parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_ltm.optimizers.slow.base import LR_SHARE

Number = int | float


@dataclass(frozen=True)
class OptimizerState:
    """All that an optimizer remembers: `tensors`, and `numbers` that are none."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    numbers: dict[str, Number] = field(default_factory=dict)

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer) -> OptimizerState:
        """The state as it is; its tensors are the optimizer's own."""
        saved, found = optimizer.state_dict(), cls()
        for name, value in _entries(saved["state"]):
            if isinstance(value, Tensor):
                found.tensors[name] = value
            elif isinstance(value, Number):
                found.numbers[name] = value
        known = {"params", "lr", LR_SHARE, *optimizer.defaults}  # what the configuration says
        for index, group in enumerate(saved["param_groups"]):
            counts = {f"group.{index}.{name}": value for name, value in group.items() if name not in known}
            found.numbers.update({name: value for name, value in counts.items() if isinstance(value, Number)})
        return found

    def give(self, optimizer: torch.optim.Optimizer) -> None:
        """Puts it into an optimizer that has stepped as often as `rehearse` makes it, and has the same names."""
        whole = optimizer.state_dict()
        values: dict[str, Any] = {**self.tensors, **self.numbers}
        state = {index: _filled(entry, f"{index}", values) for index, entry in whole["state"].items()}
        groups = [_filled(group, f"group.{index}", values) for index, group in enumerate(whole["param_groups"])]
        optimizer.load_state_dict({"state": state, "param_groups": groups})


def rehearse(optimizer: torch.optim.Optimizer, names: Mapping[str, Tensor]) -> OptimizerState:
    """The state after a step whose gradients are zero, of those parameters that `names` are of.

    That is how an optimizer says which names and shapes are right. Its rate is zero, so the parameters stay.
    """
    learned = {name.split(".")[0] for name in names}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, parameter in enumerate(parameters):
        parameter.grad = torch.zeros_like(parameter) if str(index) in learned else None
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    return OptimizerState.of(optimizer)


def _entries(state: Mapping[int, Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Name and value of each entry, those in a list one by one."""
    for index, entry in state.items():
        for name, value in entry.items():
            if isinstance(value, list | tuple):
                yield from ((f"{index}.{name}.{place}", part) for place, part in enumerate(value))
            else:
                yield f"{index}.{name}", value


def _filled(entry: Mapping[str, Any], prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """`entry` with the values that have its names."""

    def filled(name: str, old: Any) -> Any:
        if isinstance(old, list):
            return [values.get(f"{name}.{place}", part) for place, part in enumerate(old)]
        return values.get(name, old)

    return {key: filled(f"{prefix}.{key}", old) for key, old in entry.items()}
