"""A training step without numbers: which tensors it holds, by part and phase, and how many operations it takes.

The step is the library's own (`train_step`), on torch's FakeTensors, which have shapes, types and storages and no
memory behind them: a step that no machine here could hold is counted in seconds. Not seen is what a kernel takes for
itself, and what allocator and driver add.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from pyro_ltm.config import Config
from pyro_ltm.inference import FastLoop, Posterior
from pyro_ltm.inference.build import build
from pyro_ltm.inference.samplers import ParticleGuide
from pyro_ltm.model import LatentThoughtModel
from pyro_ltm.model.kernels.device import planned_for
from pyro_ltm.model.kernels.head import packs
from pyro_ltm.profiling.operations import count_operations
from pyro_ltm.profiling.watch import Watch, norms_of_a_gpu
from pyro_ltm.runs.folder import trainable
from pyro_ltm.training.optimizer_state import OptimizerState
from pyro_ltm.training.step import train_step
from pyro_ltm.training.trainer import slow_optimizer
from pyro_ltm.types import Batch

WEIGHTS, GRADIENTS, DATA, OPTIMIZER = "weights", "gradients", "tokens", "slow optimizer: "
COPIES, LOCAL = "copies of weights for the fast loop", "local parameters and their optimizer"
FIT, LEARN, HEAD, UPDATE = "activations of a fast step", "activations of the slow step", "vocabulary head", "update"
PHASES = FAST, SLOW, STEP = "fast steps", "slow step", "update"
"""Of a training step: the fits; forward and back of the decoder; the slow optimizer's step."""

BESIDE = 2
"""Micro-batches of a simulated step, at most: from the second one on, gradients lie beside the graph."""


@dataclass(frozen=True)
class Simulation:
    """Memory and operations of a training step of one process.

    Attributes:
        parts: by phase, bytes of each part at the phase's peak.
        groups: bytes of the weights of each layer, and of all else.
        learned_bytes: of the weights that learn, and so of all gradients.
        fast_operations: of a fast step of a micro-batch. slow_operations: of the rest of its work.
        fast_steps: to each slow step. is_recorded: whether a GPU can record them.
    """

    parts: dict[str, dict[str, int]]
    groups: tuple[int, ...]
    learned_bytes: int
    fast_operations: int
    slow_operations: int
    fast_steps: int
    is_recorded: bool


def simulate(config: Config, device: str = "cpu") -> Simulation:
    """A training step of `config` by the kernels of this type of device, `cpu` or `cuda`.

    A micro-batch is of `slow.batch_size` sequences of `model.max_length` tokens. Nothing is compiled or recorded, and
    no sequence stops early. Of a masked diffusion the memory is that of the draw that hides most, and operations are
    those of the mean.
    """
    with torch.device("meta"):
        model, loop = build(dataclasses.replace(config, compile=False), device="meta")
    ids = torch.arange(config.slow.batch_size)  # noise is keyed by their values: no FakeTensor
    with ExitStack() as stack:
        fake = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(planned_for(device))
        stack.enter_context(pyro.validation_enabled(False))  # as in training
        if device == "cuda":
            stack.enter_context(norms_of_a_gpu())
        modules = trainable(model, loop.guide, loop.objective)
        _without_numbers(modules, fake)
        watch = stack.enter_context(Watch(LEARN, SLOW, heads={"_TokenLogProbsBackward": HEAD}))
        return _Step(config, model, loop, ids, watch).simulated()


if packs():

    @torch.library.register_fake("mkldnn::_reorder_linear_weight")
    def _reordered(weight: Tensor, rows: int | None = None) -> Tensor:
        """The packed weight, of which torch itself does not say how much memory it takes."""
        return torch.empty_like(weight)


class _Step:
    """A training step whose tensors are watched."""

    def __init__(self, config: Config, model: LatentThoughtModel, loop: FastLoop, ids: Tensor, watch: Watch):
        self.config, self.model, self.watch = config, model, watch
        self.modules = trainable(model, loop.guide, loop.objective)
        watch.hold([*self.modules.parameters(), *self.modules.buffers()], WEIGHTS)
        self.learned = [parameter for parameter in self.modules.parameters() if parameter.requires_grad]
        for parameter in self.learned:
            parameter.register_post_accumulate_grad_hook(lambda p: watch.hold([p.grad], GRADIENTS))
        _name_parts(model, watch)
        bare = dataclasses.replace(loop, recorder=None, stopping=None, objective=loop.objective.at(1.0))
        self.loop = _WatchedLoop(**{one.name: getattr(bare, one.name) for one in dataclasses.fields(bare)}, watch=watch)
        self.optimizer = slow_optimizer(model, loop.guide, config.slow, config.slow_optimizer)
        self.optimizer.register_step_pre_hook(lambda *_: watch.enter(STEP, UPDATE))
        self.optimizer.register_step_post_hook(lambda *_: watch.enter(SLOW, LEARN))
        shape = (config.slow.batch_size, config.model.max_length + 1)
        self.batch = Batch.from_tokens(torch.zeros(shape, dtype=torch.long), ids=ids)
        watch.hold([self.batch.inputs, self.batch.mask], DATA)

    def simulated(self) -> Simulation:
        """The figures of the second of two steps: from then on the optimizer's state is there."""
        taken, guide = self.loop.steps_taken, self.loop.guide
        # Whole rounds of the pieces that `subsample` makes; an unrolled step keeps all of its fast steps.
        rounds = -(-2 // self.loop.subsample) * self.loop.subsample
        fast_steps = taken if guide.keeps_graph else min(taken, rounds)
        self.watch.places, most = hidden_tokens(self.config)
        rest = self._train(1, 0)
        for name, tensor in OptimizerState.of(self.optimizer).tensors.items():
            self.watch.hold([tensor], OPTIMIZER + name.split(".")[1])
        self.watch.begin()
        self.watch.places = most
        count = min(self.config.slow.accumulate, BESIDE)
        whole = self._train(count, fast_steps)
        return Simulation(
            parts={phase: self._parts(self.watch.peaks[phase]) for phase in PHASES if phase in self.watch.peaks},
            groups=self._groups(),
            learned_bytes=sum(parameter.nbytes for parameter in self.learned),
            fast_operations=(whole // count - rest) // fast_steps if fast_steps else 0,
            slow_operations=rest,
            fast_steps=taken,
            is_recorded=guide.is_recorded and self.model.prior.is_recorded and not guide.keeps_graph,
        )

    def _train(self, count: int, fast_steps: int) -> int:
        """A step of so many micro-batches. Its operations."""
        batches, loop = [self.batch] * count, dataclasses.replace(self.loop, steps=fast_steps)
        how: dict[str, Any] = {"clip": self.config.slow.clip, "seed": 0}
        return count_operations(lambda: train_step(self.model, batches, loop, self.optimizer, **how))

    def _parts(self, held: dict[str, int]) -> dict[str, int]:
        """In order. A fit holds local parameters, which last longer, and activations."""
        local = min(self.loop.local_bytes, held.get(FIT, 0))
        parts = {**held, LOCAL: local, FIT: held.get(FIT, 0) - local}
        return {part: parts[part] for part in sorted(parts, key=_place) if parts[part]}

    def _groups(self) -> tuple[int, ...]:
        layers: list[nn.Module] = list(getattr(self.model.decoder, "layers", []))
        sizes = [sum(parameter.nbytes for parameter in layer.parameters()) for layer in layers]
        return (*sizes, sum(parameter.nbytes for parameter in self.modules.parameters()) - sum(sizes))


@dataclass(frozen=True)
class _WatchedLoop(FastLoop):
    """A fast loop whose fits are a phase of their own."""

    watch: Any = None

    def fit(self, *arguments: Any, **options: Any) -> Posterior:
        with self.watch.during(FAST, FIT):
            posterior = super().fit(*arguments, **options)
            memory = {} if isinstance(self.guide, ParticleGuide) else self.optimizer.init(posterior.state)
        self.watch.local_bytes = sum(value.nbytes for value in (*posterior.state.values(), *memory.values()))
        return posterior

    @property
    def local_bytes(self) -> int:
        """Of the local parameters of a fit, and of what their optimizer remembers."""
        return int(self.watch.local_bytes)


def hidden_tokens(config: Config) -> tuple[int, int]:
    """Tokens of a micro-batch that a masked diffusion hides and foretells: in the mean, and at most.

    The strata of its sequences, of those that share the step, lie beside one another.
    """
    size, sequences, length = config.slow.batch_size, config.slow.sequences, config.model.max_length
    most = sum(-(-(stratum + 1) * length // sequences) for stratum in range(sequences - size, sequences))
    return round(size * (length + 1) / 2), most


def _place(part: str) -> int:
    """Where a part stands in a table: what stays from step to step comes first."""
    order = (WEIGHTS, OPTIMIZER, GRADIENTS, DATA, COPIES, LOCAL, FIT, LEARN, HEAD, UPDATE)
    return order.index(OPTIMIZER if part.startswith(OPTIMIZER) else part)


def _without_numbers(modules: nn.Module, fake: FakeTensorMode) -> None:
    """Puts FakeTensors on a processor in the place of all tensors, which have no device either."""
    cpu, made = torch.device("cpu"), {}

    def faked(value: Tensor) -> Tensor:
        if id(value) not in made:
            made[id(value)] = FakeTensor(fake, torch.empty_like(value, device="meta", requires_grad=False), cpu)
        return made[id(value)]

    for module in modules.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(faked(parameter), requires_grad=parameter.requires_grad)
        for place in (module._buffers, vars(module)):
            for name, value in place.items():
                if isinstance(value, Tensor):
                    place[name] = faked(value)


def _name_parts(model: LatentThoughtModel, watch: Watch) -> None:
    """Says of copies of weights, and of the vocabulary head, that they are parts of their own."""
    fused, log_probs = model.fused_weights, model.decoder.token_log_probs

    @contextmanager
    def fused_weights() -> Iterator[None]:
        with ExitStack() as stack:
            with watch.within(COPIES):
                stack.enter_context(fused())
            yield

    def token_log_probs(*arguments: Any) -> Tensor:
        with watch.within(HEAD):
            return log_probs(*arguments)

    vars(model)["fused_weights"] = fused_weights
    vars(model.decoder)["token_log_probs"] = token_log_probs
