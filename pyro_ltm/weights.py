"""The tensors of a module as they are at one moment, so that what is computed later is computed with them."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

from pyro.nn.module import PyroModule
from torch import Tensor, nn

from pyro_ltm.errors import UserError

KINDS = ("_parameters", "_buffers", "_modules")

Slots = list[dict[str, Any]]
"""Copies of the dictionaries, one for each of `KINDS`, in which a module has its tensors and modules by name."""


class Weights:
    """The tensors of all parts of `root` now: parameters, buffers, and whatever Pyro gives in the place of either.

    A distribution that works out its density by a network is asked for it after the program has run. By then a weight
    may be another one: `torch.func.functional_call` has put its own back, a `PyroSample` would draw anew. These are
    the tensors themselves, not copies: gradients reach them. A change in place is noticed by torch's count of versions,
    which a fused optimizer and `parameter.data` pass by: take log-probabilities before such a step.
    """

    def __init__(self, root: nn.Module):
        self._parts = list(_parts(root))
        self._slots: list[Slots] = []
        self._looked_up = False
        for part in self._parts:
            slots = [part.__dict__[kind].copy() for kind in KINDS]
            if isinstance(part, PyroModule):
                self._looked_up |= _look_up(part, slots)
            self._slots.append(slots)
        self._tensors = _tensors(self._slots)
        self._versions = _versions(self._tensors)

    def same_as(self, other: Weights) -> bool:
        """Whether these are the same tensors in the same parts, and as they were then; never of what Pyro looks up."""
        same = not self._looked_up and self._versions == other._versions
        return same and _same_objects(self._parts, other._parts) and _same_objects(self._tensors, other._tensors)

    def module(self) -> nn.Module:
        """The module with these tensors: `root` itself where it has them still, else one made like it.

        Raises:
            UserError: one of them was changed in place, and what it was is gone.
        """
        if self._versions != _versions(self._tensors):
            raise UserError(
                "a weight was changed in place after the program ran: take the log-probabilities of its trace before "
                "the optimizer's step"
            )
        root = self._parts[0]
        return root if not self._looked_up and self._are_of(root) else self._rebuilt()

    def _are_of(self, root: nn.Module) -> bool:
        """Whether `root` has the same parts and tensors still."""
        parts = list(_parts(root))
        slots = [[part.__dict__[kind] for kind in KINDS] for part in parts]
        return _same_objects(self._parts, parts) and _same_objects(self._tensors, _tensors(slots))

    def _rebuilt(self) -> nn.Module:
        made: dict[nn.Module, nn.Module] = {}
        for part, slots in zip(reversed(self._parts), reversed(self._slots), strict=True):  # children before parents
            like = part.__new__(type(part))
            like.__dict__.update(part.__dict__, **dict(zip(KINDS, slots, strict=True)))
            like.__dict__["_modules"] = {name: child and made[child] for name, child in slots[-1].items()}
            like.__dict__["_compiled_call_impl"] = None  # it is compiled with the tensors of `root`
            if isinstance(part, PyroModule):
                like.__dict__.update(_pyro_params={}, _pyro_samples={})
            made[part] = like
        return made[self._parts[0]]


def draws(root: nn.Module) -> bool:
    """Whether a weight of `root` is drawn anew in each run of the program (`PyroSample`)."""
    return any(isinstance(part, PyroModule) and bool(part._pyro_samples) for part in root.modules())


def _parts(root: nn.Module) -> Iterator[nn.Module]:
    """`root` and all modules in it, parents first; one that is there twice comes twice."""
    queue: list[nn.Module | None] = [root]
    for part in queue:  # which grows
        if part is not None:
            yield part
            queue += part.__dict__["_modules"].values()


def _tensors(all_slots: list[Slots]) -> list[Tensor | None]:
    return [
        tensor for parameters, buffers, _ in all_slots for kind in (parameters, buffers) for tensor in kind.values()
    ]


def _look_up(part: PyroModule, slots: Slots) -> bool:
    """Asks Pyro for what it gives in place of the weights of `part`, puts that into `slots`; whether there was any.

    The program's trace learns of them so: those that are drawn are its sites, the others its parameters.
    """
    parameters, buffers, _ = slots
    names = [*part._pyro_params, *part._pyro_samples]
    with part._pyro_context:
        buffers.update({name: getattr(part, name) for name in names})
        for name in parameters:
            getattr(part, name)
    return bool(names)


def _same_objects(some: list[Any], others: list[Any]) -> bool:
    return len(some) == len(others) and all(map(operator.is_, some, others))


def _versions(tensors: list[Tensor | None]) -> list[int]:
    """How often each was changed in place; nothing is known of tensors made for inference."""
    try:
        return [tensor._version for tensor in tensors if tensor is not None]
    except RuntimeError:
        return []
