"""Several torch optimizers as one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import torch


class Joint(torch.optim.Optimizer):
    """Several torch optimizers as one, each with parameters of its own: they share state and parameter groups.

    It takes `found_inf`, as torch's GradScaler gives it, if all of them do.
    """

    def __init__(self, *parts: torch.optim.Optimizer):
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.defaults = {name: value for part in parts for name, value in part.defaults.items()}
        self._step_supports_amp_scaling = all(getattr(part, "_step_supports_amp_scaling", False) for part in parts)
        self._share()

    def _share(self) -> None:
        """Gives each part its groups of ours, and the state of all."""
        groups = iter(self.param_groups)
        for part in self.parts:
            part.__setstate__({"state": self.state, "param_groups": list(islice(groups, len(part.param_groups)))})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # `load_state_dict` puts new objects in place of state and groups
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of each."""
        scaling = {name: value for name, value in vars(self).items() if name in ("grad_scale", "found_inf")}
        loss = None if closure is None else closure()
        for part in self.parts:
            vars(part).update(scaling)
            part.step()
            for name in scaling:
                del vars(part)[name]
        return loss
