"""The contract of a class from outside of the library, tried on two sequences before anything long begins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from pyro_ltm.config import ModelConfig, SlowConfig
from pyro_ltm.errors import UserError
from pyro_ltm.guides import Guide, MeanField
from pyro_ltm.model import LatentThoughtModel
from pyro_ltm.noise import Noise, draw
from pyro_ltm.objectives import Objective, Terms
from pyro_ltm.optimizers import FastOptimizer
from pyro_ltm.optimizers.slow import SlowOptimizer
from pyro_ltm.plugins import blamed
from pyro_ltm.priors import Prior
from pyro_ltm.types import Batch, State

B, T = 2, 3


def is_foreign(part: Any) -> bool:
    """Whether `part`, or its class, is from outside of the library, whose own tests do not see it."""
    kind = part if isinstance(part, type) else type(part)
    return not f"{kind.__module__}.".startswith("pyro_ltm.")


def check_guide(guide: Guide) -> None:
    """Raises UserError, naming the method, where a guide from outside does not keep to the contract of `Guide`."""
    if not is_foreign(guide) or not guide.thoughts:
        return
    device = next((weight.device for weight in guide.parameters()), torch.device("cpu"))
    batch = Batch.from_tokens(torch.zeros(B, T + 1, dtype=torch.int64)).to(device)
    with _trying(guide, "init(batch)"):
        state = guide.init(batch)
    _check_state(guide, "init(batch)", state)
    with _trying(guide, "distribution(state)"):
        q = guide.distribution(state)
        got = tuple(q.batch_shape), tuple(q.event_shape)
    wanted = (B,), (guide.thoughts, guide.dim)
    if got != wanted:
        raise UserError(
            f"{type(guide).__name__}.distribution(state): batch shape {list(got[0])} and event shape {list(got[1])} of "
            f"{B} sequences; it should be {list(wanted[0])} and {list(wanted[1])}: to_event(2) makes an event of the "
            "last two dimensions"
        )
    with _trying(guide, "distribution(state)"):
        draw(q, Noise(batch.ids, device=device, seed=0))


def check_shape(axis: str, part: Guide | Prior, model: ModelConfig) -> None:
    """Raises UserError where a guide or a prior is of other thoughts than the model has."""
    if (part.thoughts, part.dim) != (model.thoughts, model.thought_width):
        raise UserError(
            f"{axis}: {type(part).__name__} is of {part.thoughts} thoughts of width {part.dim}, and the model has "
            f"{model.thoughts} of width {model.thought_width}: make it of those, or give the class alone"
        )


def check_density(prior: Prior) -> None:
    """Raises UserError where a prior from outside gives no distribution of one sequence's thoughts."""
    if not is_foreign(prior):
        return
    with _trying(prior, "forward()"):
        p = prior()
        got = tuple(p.batch_shape), tuple(p.event_shape)
    if got != ((), (prior.thoughts, prior.dim)):
        raise UserError(
            f"{type(prior).__name__}.forward(): batch shape {list(got[0])}, event shape {list(got[1])}; of one text "
            f"it should be [] and {[prior.thoughts, prior.dim]}: to_event(2) makes an event of the last two dimensions"
        )
    with _trying(prior, "forward()"):
        noise = Noise(torch.arange(B), device=next(iter(prior.state_dict().values()), torch.zeros(())).device, seed=0)
        p.log_prob(draw(p.expand(torch.Size([B])), noise))


def check_objective(objective: Objective) -> None:
    """Raises UserError where an objective from outside gives anything else than a number for each sequence."""
    if is_foreign(objective):
        with torch.device("cpu"):
            _check_objective(objective)


def _check_objective(objective: Objective) -> None:
    shape, thoughts, dim = torch.Size([objective.num_particles, B]), 2, 4
    batch = Batch.from_tokens(torch.zeros(B, T + 1, dtype=torch.int64))
    with _trying(objective, "local(batch)"):
        state = objective.local(batch)
    terms = Terms(
        log_likelihood=torch.randn(shape) - 5,
        log_prior=torch.randn(shape) - 2,
        log_guide=torch.randn(shape) - 1,
        kl=torch.ones(B) if objective.reads_kl else None,
        kl_by_thought=torch.ones(B, thoughts) if objective.needs_kl_by_thought else None,
        thoughts=torch.zeros(*shape, thoughts, dim),
        state=state,
        prior=Normal(torch.zeros(thoughts, dim), torch.ones(())),
        stopped_log_guide=lambda: torch.randn(shape) - 1,
    )
    for method in ("value", "guide_loss", "decoder_loss"):
        with _trying(objective, f"{method}(terms)"):
            found = getattr(objective, method)(terms)
        if not isinstance(found, Tensor) or found.shape != (B,):
            raise UserError(
                f"{type(objective).__name__}.{method}(terms): {_written(found)} of {B} sequences; it should be [{B}], "
                "nats of each sequence: sum over particles, not over sequences"
            )


def check_optimizer(optimizer: FastOptimizer) -> None:
    """Raises UserError where a fast optimizer from outside does not give state and memory as it got them."""
    if is_foreign(optimizer):
        with torch.device("cpu"):
            _check_optimizer(optimizer)


def check_slow_optimizer(maker: SlowOptimizer, slow: SlowConfig) -> None:
    """Raises UserError where weights decay past zero, or one from outside leaves a parameter of a small model out."""
    for name, rate in maker.decaying(slow).items():
        if rate * slow.weight_decay >= 1:
            raise UserError(
                f"slow.weight_decay = {slow.weight_decay:g}: times {name} = {rate:g} it is "
                f"{rate * slow.weight_decay:.3g}, and each step takes from a weight that share of it: the product must "
                f"be below 1, so below {1 / rate:.3g} at this rate"
            )
    if not is_foreign(maker):
        return
    with torch.device("cpu"), _trying(maker, "build(module, slow)"):
        small = ModelConfig(vocab_size=4, dim=4, layers=1, heads=1, thoughts=1, max_length=4)
        module = nn.ModuleDict({"model": LatentThoughtModel(small), "guide": MeanField(1, 4)})
        made: Any = maker.build(module, slow)
    where = f"{type(maker).__name__}.build(module, slow)"
    if not isinstance(made, torch.optim.Optimizer):
        raise UserError(f"{where}: gives {_written(made)}; it should be a torch.optim.Optimizer")
    held = {id(parameter) for group in made.param_groups for parameter in group["params"]}
    for name, parameter in module.named_parameters():
        if id(parameter) not in held:
            raise UserError(f"{where}: {name} is in no group of the optimizer, and would not learn")


def _check_optimizer(optimizer: FastOptimizer) -> None:
    state = {"mean": torch.zeros(B, 3), "log_scale": torch.zeros(B, 3)}
    with _trying(optimizer, "init(state)"):
        memory = optimizer.init(state)
    _check_state(optimizer, "init(state)", memory)
    with _trying(optimizer, "step(...)"):
        moved = optimizer.step(state, state, memory, losses=torch.zeros(B), step=0, steps=2)
        state_after, memory_after = moved
    for before, after in ((state, state_after), (memory, memory_after)):
        _check_state(optimizer, "step(...)", after)
        if {name: value.shape for name, value in before.items()} != {name: one.shape for name, one in after.items()}:
            raise UserError(
                f"{type(optimizer).__name__}.step(...): gives tensors {_shapes(after)}, and got {_shapes(before)}: it "
                "gives state and memory with the names and shapes that they had"
            )


def _check_state(part: Any, method: str, state: Any) -> None:
    """Raises UserError unless `state` is a dictionary of tensors with leading dimension B."""
    where = f"{type(part).__name__}.{method}"
    if not isinstance(state, dict):
        raise UserError(f"{where}: gives {_written(state)}; it should be a dictionary of tensors by name")
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.shape[:1] != (B,):
            raise UserError(
                f"{where}: '{name}' is {_written(value)} of {B} sequences; it should be a tensor with leading "
                f"dimension {B}, the part of each sequence"
            )


@contextmanager
def _trying(part: Any, method: str) -> Iterator[None]:
    """Torch's global generator stays as it is; whatever goes wrong within is said in a line."""
    with (
        torch.random.fork_rng(devices=[]),
        torch.no_grad(),
        pyro.validation_enabled(False),
        blamed(f"{type(part).__name__}.{method}"),
    ):
        yield


def _written(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _shapes(state: State) -> str:
    return ", ".join(f"{name} {list(value.shape)}" for name, value in state.items())
