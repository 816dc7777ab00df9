"""The rivals of a run, trained on the same tokens: its decoder without thoughts, and that as a masked diffusion."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pyro_ltm.config import ModelConfig
from pyro_ltm.errors import UserError
from pyro_ltm.inference.build import build
from pyro_ltm.runs.notes import origin_note
from pyro_ltm.runs.run import Run

SCHEDULE = (
    *("steps", "changed_at", "rewarm", "decay_steps", "lr", "lr_final", "warmup", "schedule", "decay"),
    *("weight_decay", "beta1", "beta2", "clip"),
)
"""Settings of `slow` by which a twin learns from the same sequences; the rest is when to look, and about thoughts."""

OF_THOUGHTS = ("zero_cross_attention", "thought_dim", "thought_stride")
"""Settings of `model` that say nothing of a decoder without thoughts."""

BEGUN = ("init_std", "zero_init", "dropout")
"""Settings of `model` by which a decoder begins and learns; once it is trained, it is the same decoder with others."""


def base_of(run: Run) -> Run | None:
    """The twin of a graft: its base model by itself, as it was. None for a run with a decoder of our own.

    Raises UserError when the base is gone, or is another one.
    """
    if not run.config.graft.base:
        return None
    graft, slow = replace(run.config.graft, train="frozen"), replace(run.config.slow, decoder_warmup=0.0)
    config = replace(run.config, model=run.config.model.twin, graft=graft, slow=slow)
    model, loop = build(config, device=run.device)
    return Run(Path(graft.base), config, model.eval(), loop, run.tokenizer, 0)


def check_twin(run: Run, twin: Run) -> list[str]:
    """`training_differences` of a run and its twin: empty for a true one.

    Raises:
        UserError: they do not read the same tokens, or the second is not the first's decoder without thoughts.
    """
    return _checked(run, twin, "--twin", run.config.model.twin, "model.thoughts = 0")


def check_masked_diffusion(run: Run, rival: Run) -> list[str]:
    """`check_twin` of the same decoder without the causal mask."""
    return _checked(
        run, rival, "--masked-diffusion", run.config.model.masked_diffusion, "model.kind = masked-diffusion"
    )


def _checked(run: Run, twin: Run, option: str, wanted: ModelConfig, words: str) -> list[str]:
    """See `check_twin`; `wanted` is the shape of the rival that the `option` names, and `words` its setting."""
    what = option.removeprefix("--").replace("-", " ")
    if twin.tokenizer.fingerprint != run.tokenizer.fingerprint:
        raise UserError(
            f"{option} {twin.folder}: has another tokenizer than {run.folder}, so nats a token cannot be compared; "
            "train both on the same prepared folder"
        )
    begun = {name: getattr(run.config.model, name) for name in (*BEGUN, *OF_THOUGHTS)}
    same_base = twin.config.graft.digest == run.config.graft.digest
    if replace(twin.config.model, **begun) != wanted or not same_base:
        raise UserError(
            f"{option} {twin.folder}: not the {what} of {run.folder}, which is the same decoder with {words}; "
            "evaluate another model by itself"
        )
    return training_differences(run, twin)


def training_differences(run: Run, twin: Run) -> list[str]:
    """In what else than thoughts the training of a twin differed from that of `run`, a line each.

    A twin reads the same tokens in the same order, and learns from them with the same slow optimizer.
    """
    if run.config.graft.base and twin.folder == Path(run.config.graft.base):
        return ["it is the base model as it was, and has learned nothing from these texts"] if run.step else []
    theirs, ours = twin.data_fingerprint, run.data_fingerprint
    lines = ["it was trained on other data"] if None not in (theirs, ours) and theirs != ours else []
    if not run.config.graft.base and (its_origin := origin_note(twin.folder)) != (
        own_origin := origin_note(run.folder)
    ):
        its, this = (f"the weights of {one.run}" if one else "random weights" for one in (its_origin, own_origin))
        lines.append(f"it began with {its}, this run with {this}")
    read, own = (one.step * one.config.slow.sequences for one in (twin, run))
    if read != own:
        lines.append(f"it has read {read:,} sequences where this run has read {own:,}")
    if twin.config.seed != run.config.seed:
        lines.append(f"its seed is {twin.config.seed}, this run's {run.config.seed}")
    for name in SCHEDULE:
        one, other = getattr(twin.config.slow, name), getattr(run.config.slow, name)
        if one != other:
            lines.append(f"its slow.{name} is {one}, this run's {other}")
    for name in BEGUN:
        one, other = getattr(twin.config.model, name), getattr(run.config.model, name)
        if one != other:
            lines.append(f"its model.{name} is {one}, this run's {other}")
    optimizers = (twin.config.slow_optimizer, run.config.slow_optimizer)
    used, ours_used = ({"name": one.name, **one.options} for one in optimizers)
    for name in {**used, **ours_used}:
        if used.get(name) != ours_used.get(name):
            lines.append(f"its slow_optimizer.{name} is {used.get(name)}, this run's {ours_used.get(name)}")
    return lines
