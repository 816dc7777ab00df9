"""The slow step on several processes: each has a share of its sequences, and all have the gradient of all of them.

The fast loop runs on the bare modules and sends nothing. The slow pass goes through `forward` of what wraps them: a
loss that is taken another way leaves gradients that differ between processes, and nobody says so (pytorch#47562).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pyro_ltm.config import Config
from pyro_ltm.distributed import World, current, gathered
from pyro_ltm.errors import UserError, one_line
from pyro_ltm.inference.build import build, build_objective
from pyro_ltm.optimizers.slow import SLOW_OPTIMIZERS
from pyro_ltm.runs.folder import trainable
from pyro_ltm.runs.run import Run


class Parallel:
    """The slow pass of one process by itself.

    Args:
        module: what the slow step learns; its `forward` gives the loss first, then figures.

    Attributes:
        world: the processes that share it.
        shares: whether each keeps a share of the weights alone.
    """

    shares: ClassVar[bool] = False

    def __init__(self, module: nn.Module):
        self.module: Any = module
        self.world = World()

    def forward(self, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The module's, of whose loss the backward pass is to be taken."""
        found: tuple[Tensor, Tensor, Tensor] = self.module(*inputs)
        return found

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """All weights are there within it, for fits and passes; the optimizer, checkpoints and averages are outside."""
        yield

    def whole_run(self, run: Run) -> Run:
        """The trained run as one that is loaded: with all weights, in evaluation mode."""
        run.model.eval()
        return run

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


class Sharded(Parallel):
    """Each process keeps a share of weights, gradients and the optimizer's state (FSDP2).

    The weights are gathered once for all fits, passes and micro-batches of a step. Layers are called by functions of
    theirs that no hook sees, so each is gathered, and its gradient reduced, as a group of its own, but not by itself.
    """

    shares = True

    def __init__(self, module: nn.Module):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

        super().__init__(module)
        self.world = current()
        device = next(module.parameters()).device.type
        mesh = init_device_mesh(device, (self.world.size,))
        layers = [layer for stack in module.modules() if isinstance(stack, nn.ModuleList) for layer in stack]
        try:
            for part in (*layers, module):
                fully_shard(part, mesh=mesh, reshard_after_forward=False)
        except ValueError as error:  # of a parameter without dimensions
            raise UserError(f"distributed.kind = fsdp: {one_line(error)}; or set distributed.kind=ddp") from None
        self.parts: list[Any] = [part for part in module.modules() if isinstance(part, FSDPModule)]
        self.module.set_reshard_after_backward(False)
        # Whichever hook runs first takes its module for the root of all, and an encoder's layers run before this one.
        register_fsdp_forward_method(module, "begin")
        with self.gathered():
            self.module.begin()

    @contextmanager
    def gathered(self) -> Iterator[None]:  # noqa: D102 - as Parallel's
        for part in self.parts:
            part.unshard()
        try:
            yield
        finally:
            for part in self.parts:
                part.reshard()

    def whole_run(self, run: Run) -> Run:  # noqa: D102
        model, loop = build(replace(run.config, compile=False), device=run.device)
        whole = trainable(model, loop.guide, loop.objective).state_dict()
        for name, share in run.trainable.state_dict().items():
            whole[name].copy_(gathered(share))
        return super().whole_run(replace(run, model=model, loop=loop))

    @contextmanager
    def accumulating(self, more: bool) -> Iterator[None]:  # noqa: D102
        self.module.set_requires_gradient_sync(not more)
        yield


def parallel(module: nn.Module, kind: str = "ddp") -> Parallel:
    """The slow pass of `module` on the processes that there are; `kind` is as in `DistributedConfig`."""
    learns = any(parameter.requires_grad for parameter in module.parameters())
    if current().size == 1 or not learns:
        return Parallel(module)
    return Sharded(module) if kind == "fsdp" else Replicated(module)


def check_shares(config: Config, size: int) -> None:
    """Raises UserError where so many processes cannot share a training."""
    sequences = config.slow.sequences
    if size == 1:
        return
    if sequences < size:
        raise UserError(
            f"{size} processes for the {sequences} sequences of a slow step: start fewer, or set slow.batch_size "
            f"and slow.accumulate so that their product is at least {size}"
        )
    if config.model.thoughts and build_objective(config.objective, config.model).couples_batch:
        raise UserError(
            f"objective {config.objective.name} compares the sequences of a batch, which several processes would cut "
            "apart: train by it in one process"
        )
    if config.distributed.kind == "fsdp" and not SLOW_OPTIMIZERS.build(config.slow_optimizer).takes_shares:
        fitting = [name for name, kind in SLOW_OPTIMIZERS.items() if kind.takes_shares]
        raise UserError(
            f"distributed.kind = fsdp: slow_optimizer {config.slow_optimizer.name} needs whole matrices: use "
            f"{' or '.join(fitting)}, or distributed.kind=ddp"
        )
