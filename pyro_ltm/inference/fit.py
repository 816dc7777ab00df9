"""The fast loop: from the first local parameters of a batch to the last, step by step."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from pyro_ltm.errors import UserError
from pyro_ltm.guides import Guide
from pyro_ltm.inference.token_subsample import subsampled
from pyro_ltm.noise import DrawFrom, Noise
from pyro_ltm.objectives import Objective
from pyro_ltm.optimizers import FastOptimizer
from pyro_ltm.types import Batch, State

Watch = Callable[[int, State], None]
"""Called with the fast steps done and the local parameters [B, ...]: before the first step, and after each."""


class Carried(Protocol):
    """Passed from one fast step to the next; `state` are the local parameters of the whole batch."""

    @property
    def state(self) -> State:
        """Local parameters, leading dimension B."""


C = TypeVar("C", bound=Carried)


class FastSteps(Generic[C]):
    """Fast steps without state of their own: what changes goes in and comes out."""

    @abstractmethod
    def init(self, batch: Batch, state: State, noise: Noise) -> C:
        """Input of the first step."""

    @abstractmethod
    def step(self, carried: C, step: int) -> tuple[Tensor, C]:
        """The objective's values [B] before fast step `step` (from 0), and what the next one takes."""

    def is_done(self, carried: C) -> bool:
        """Whether no sequence needs another step."""
        return False


def run(
    fast: FastSteps[C], batch: Batch, state: State, noise: Noise, steps: int, watch: Watch | None = None
) -> tuple[State, Tensor]:
    """At most `steps` fast steps from `state`: the last state, and the history [steps taken, B] of the values."""
    carried = fast.init(batch, state, noise)
    history = []
    for step in range(steps):
        values, carried = fast.step(carried, step)
        history.append(values)
        if watch:
            watch(step + 1, carried.state)
        if fast.is_done(carried):
            break
    return carried.state, torch.stack(history) if history else torch.zeros(0, batch.size, device=batch.device)


@dataclass(frozen=True)
class Carry:
    """Between two gradient steps: the sequences, their noise and local parameters, and the optimizer's memory.

    Shapes:
        losses: [B] in nats, before the last step.
    """

    batch: Batch
    noise: Noise
    state: State
    memory: State
    losses: Tensor

    def select(self, rows: Tensor) -> Carry:
        """Of the sequences at `rows` (int64 [B'])."""
        state, memory = ({name: value[rows] for name, value in each.items()} for each in (self.state, self.memory))
        return Carry(self.batch.select(rows), self.noise.select(rows), state, memory, self.losses[rows])


@dataclass(frozen=True)
class GradientSteps(FastSteps[Carry]):
    """The fast optimizer along the gradient of the objective: one step of Algorithm 1's inner loop.

    Args:
        steps: of the whole fit, for schedules. subsample: see `subsampled`, whose order of pieces `seed` gives.
        keep_graph: the state keeps its graph back to the first one.
    """

    model: nn.Module
    guide: Guide
    objective: Objective
    optimizer: FastOptimizer
    steps: int
    subsample: int = 1
    seed: int = 0
    keep_graph: bool = False

    def init(self, batch: Batch, state: State, noise: Noise) -> Carry:
        """See `FastSteps.init`."""
        losses = torch.full((batch.size,), math.inf, device=batch.device)
        return Carry(batch, noise, state, self.optimizer.init(state), losses)

    def step(self, carried: Carry, step: int) -> tuple[Tensor, Carry]:
        """See `FastSteps.step`."""
        state = {name: self._leaf(value) for name, value in carried.state.items()}
        batch = carried.batch
        if self.subsample > 1:
            batch = subsampled(batch, self.subsample, step=step, seed=self.seed)
        objective = self.objective.within(step / self.steps)
        with torch.enable_grad(), DrawFrom(carried.noise):
            losses, values = objective.loss_and_value(self.model, self.guide, batch, state)
            grads = torch.autograd.grad(losses.sum(), list(state.values()), create_graph=self.keep_graph)
        gradients = dict(zip(state, grads, strict=True))
        with torch.set_grad_enabled(self.keep_graph):
            if self.optimizer.wants_natural_gradient:
                gradients |= self.optimizer.shortened(gradients, self.guide.natural_gradient(state, gradients))
            losses = losses.detach().expand(batch.size)
            state, memory = self.optimizer.step(
                state, gradients, carried.memory, losses=losses, step=step, steps=self.steps
            )
        return values, dataclasses.replace(carried, state=state, memory=memory, losses=losses)

    def _leaf(self, value: Tensor) -> Tensor:
        """Leaf for this step's gradient; with `keep_graph`, still a part of the graph."""
        return value if self.keep_graph and value.requires_grad else value.detach().requires_grad_()


@dataclass(frozen=True)
class Plateau:
    """When a sequence takes no more fast steps: its loss has stopped falling, and the batch goes on without it.

    Fast steps then wait for the device, for who goes on is decided on the host.

    Args:
        tolerance: nats above 0 by which the loss must fall over `patience` fast steps: their mean against the mean of
            as many before.
    """

    tolerance: float
    patience: int = 4

    def __post_init__(self) -> None:
        if not (self.tolerance > 0 and self.patience >= 1):
            raise UserError(f"tolerance = {self.tolerance}, patience = {self.patience}: above 0, and at least 1 step")

    @classmethod
    def of(cls, tolerance: float, patience: int) -> Plateau | None:
        """The plateau of these settings; None where the tolerance is 0, and all sequences take all steps."""
        return cls(tolerance, patience) if tolerance else None

    def around(self, fast: GradientSteps) -> UntilPlateau:
        """Those steps, of each sequence until it reaches its plateau."""
        return UntilPlateau(fast, self.tolerance, self.patience)


@dataclass(frozen=True)
class Unfinished:
    """`state` of the whole batch; `rows` that go on, what they take into the next step, and their latest losses."""

    state: State
    rows: Tensor
    carry: Carry
    latest: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class UntilPlateau(FastSteps[Unfinished]):
    """Gradient steps of a batch that shrinks as its sequences finish (see `Plateau`)."""

    fast: GradientSteps
    tolerance: float
    patience: int

    def init(self, batch: Batch, state: State, noise: Noise) -> Unfinished:
        """See `FastSteps.init`."""
        return Unfinished(state, torch.arange(batch.size, device=batch.device), self.fast.init(batch, state, noise))

    def step(self, carried: Unfinished, step: int) -> tuple[Tensor, Unfinished]:
        """See `FastSteps.step`; NaN for a sequence that stopped before."""
        rows = carried.rows
        values, carry = self.fast.step(carried.carry, step)
        state = {name: value.index_copy(0, rows, carry.state[name]) for name, value in carried.state.items()}
        latest = (*carried.latest, carry.losses)[-2 * self.patience :]
        every = values.new_full((len(next(iter(state.values()))),), math.nan).index_copy(0, rows, values)
        if len(latest) == 2 * self.patience:
            before, now = torch.stack(latest).unflatten(0, (2, self.patience)).mean(1)
            # A loss that is not finite has not fallen either: it is left as it is, and seen by whoever scores it.
            going = (before - now >= self.tolerance).nonzero()[:, 0]
            if len(going) < len(rows):
                rows, carry, latest = rows[going], carry.select(going), tuple(each[going] for each in latest)
        return every, Unfinished(state, rows, carry, latest)

    def is_done(self, carried: Unfinished) -> bool:
        """All have stopped."""
        return not len(carried.rows)
