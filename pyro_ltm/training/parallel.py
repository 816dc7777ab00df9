"""The slow step on several processes: each has a share of its sequences, and all have the gradient of all of them.

The fast loop runs on the bare modules and sends nothing. The slow pass goes through `forward` of what wraps them: a
loss that is taken another way leaves gradients that differ between processes, and nobody says so (pytorch#47562).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pyro_ltm.config import Config
from pyro_ltm.distributed import World, current
from pyro_ltm.errors import UserError
from pyro_ltm.inference.build import build_objective


class Parallel:
    """The slow pass of one process by itself.

    Args:
        module: what the slow step learns; its `forward` gives the loss first, then figures.

    Attributes:
        world: the processes that share it.
    """

    def __init__(self, module: nn.Module):
        self.module = module
        self.world = World()

    def forward(self, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The module's, of whose loss the backward pass is to be taken."""
        found: tuple[Tensor, Tensor, Tensor] = self.module(*inputs)
        return found

    @contextmanager
    def accumulating(self, more: bool) -> Iterator[None]:
        """Gradients of passes within it are summed over processes, unless `more` micro-batches of the step follow."""
        yield


class Replicated(Parallel):
    """Each process has all weights (DDP): gradients are averaged while the backward pass of the last one runs."""

    def __init__(self, module: nn.Module):
        super().__init__(module)
        self.world = current()
        # Which weights a step moves changes along a run: without thoughts, those that read them are not used. Buffers
        # change the same way in all processes.
        self.wrapped = DistributedDataParallel(
            module, find_unused_parameters=True, forward_sync_buffers=False, gradient_as_bucket_view=True
        )

    def forward(self, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:  # noqa: D102 - as Parallel's
        found: tuple[Tensor, Tensor, Tensor] = self.wrapped(*inputs)
        return found

    @contextmanager
    def accumulating(self, more: bool) -> Iterator[None]:  # noqa: D102
        if more:
            with self.wrapped.no_sync():
                yield
        else:
            yield


def parallel(module: nn.Module) -> Parallel:
    """The slow pass of `module` on the processes that there are."""
    learns = any(parameter.requires_grad for parameter in module.parameters())
    return Replicated(module) if learns and current().size > 1 else Parallel(module)


def check_shares(config: Config) -> None:
    """Raises UserError where the sequences of a slow step cannot be shared by the processes that there are."""
    world, sequences = current(), config.slow.sequences
    if sequences < world.size:
        raise UserError(
            f"{world.size} processes for the {sequences} sequences of a slow step: start fewer, or set slow.batch_size "
            f"and slow.accumulate so that their product is at least {world.size}"
        )
    if world.size > 1 and config.model.thoughts and build_objective(config.objective, config.model).couples_batch:
        raise UserError(
            f"objective {config.objective.name} compares the sequences of a batch, which several processes would cut "
            "apart: train by it in one process"
        )
