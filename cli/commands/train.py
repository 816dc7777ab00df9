"""`pyro-ltm train`: text or tokens in, a run folder out."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..options import (
    FOLDER,
    Common,
    FiniteRange,
    TokenizerFile,
    common,
    config_option,
    examples,
    gathered,
    given,
    number,
    preset_option,
    reading_options,
    settings_option,
    tokenizer_options,
)

if TYPE_CHECKING:
    from pyro_ltm.config import Config
    from pyro_ltm.data import Reading
    from pyro_ltm.runs import Run


@dataclass(frozen=True)
class Plan:
    """How to train, as far as options say it."""

    preset: str | None
    config_file: Path | None
    settings: tuple[str, ...]
    steps: int | None
    rate: float | None

    @property
    def all_settings(self) -> tuple[str, ...]:
        """Those of --set, and before them what --rate stands for. Raises UsageError where they contradict."""
        if self.rate is None:
            return self.settings
        if any(setting.startswith("objective.") for setting in self.settings):
            raise click.UsageError("--rate says what the objective is (mean-rate): leave --set objective.* out")
        return ("objective.name=mean-rate", f"objective.nats={self.rate}", *self.settings)

    def config(
        self, data: Sequence[str], start: Start, out: Path, common: Common, say: Callable[[str], None]
    ) -> Config:
        """The configuration to train; `say` is given what was chosen, and why.

        Raises:
            UsageError: a rate is asked of a model without thoughts.
        """
        how: dict[str, Any] = {"thoughts": self.rate is not None, "allow_code": common.allow_code, "say": say}
        base = base_config(self.preset, data, start.configured(out), start.init_from, **how)
        config = configure(base, self.config_file, self.all_settings, common, self.steps)
        if self.rate is not None and not config.model.thoughts:
            raise click.UsageError("--rate: a twin (model.thoughts = 0) has no thoughts that could carry anything")
        return config


@dataclass(frozen=True)
class Text:
    """The text to learn from, as far as options say it."""

    data: tuple[str, ...]
    stream: bool
    workers: int


@dataclass(frozen=True)
class Start:
    """The run or weights that training begins with, as far as options say it."""

    resume: bool
    rewarm: int | None
    decay: int | None
    branch_from: Path | None
    at: int | None
    init_from: Path | None

    def check(self, plan: Plan) -> None:
        """Raises UsageError for an option without the one that it goes with."""
        goes_on = self.resume or self.branch_from is not None
        if self.rewarm and not (goes_on and plan.steps):
            raise click.UsageError("--rewarm goes with --resume and --steps: it is of a run that is extended")
        if self.decay and not (goes_on and plan.steps is None):
            raise click.UsageError("--decay goes with --resume or --branch-from, without --steps: the run ends with it")

        if self.at is not None and self.branch_from is None:
            raise click.UsageError("--at goes with --branch-from: it says from which of that run's checkpoints")

    def configured(self, out: Path) -> Path | None:
        """The run that goes on, and with it its configuration; None for a new one."""
        return self.branch_from or (out if self.resume else None)


@click.command(
    short_help="Train a model, or go on with --resume.",
    epilog=examples(
        "pyro-ltm train --data python-docs --out runs/first",
        "pyro-ltm train --data data/mine --out runs/mine --preset small --set slow.lr=0.001 --steps 2000",
        "pyro-ltm train --data data/mine --out runs/twin --preset small --set model.thoughts=0",
        "pyro-ltm train --data data/mine --out runs/diffusion --preset small --set model.kind=masked-diffusion",
        "pyro-ltm train --data reviews.jsonl --out runs/reviews --rate 40",
        "pyro-ltm train --data hf:HuggingFaceFW/fineweb --stream --workers 8 --out runs/web",
        "pyro-ltm train --resume --out runs/mine",
        "pyro-ltm train --resume --out runs/mine --steps 4000 --rewarm 100",
        "pyro-ltm train --data data/mine --out runs/stable --set slow.schedule=wsd --set slow.decay=0 --steps 9000",
        "pyro-ltm train --branch-from runs/stable --decay 900 --out runs/decayed",
        "pyro-ltm train --data letters.txt --init-from runs/mine --out runs/letters --steps 500",
    ),
)
@gathered(
    "text",
    Text,
    click.option(
        "--data",
        metavar="SOURCE_OR_DIR",
        multiple=True,
        help="A folder that `prepare` wrote, or text to prepare inside the run folder. Repeatable.",
    ),
    click.option(
        "--stream", is_flag=True, help="Of text, prepare no more than the run will read: for sources of any size."
    ),
    number("--workers", "Processes that make tokens of text; 1: the threads of one.", default=1),
)
@click.option("--out", required=True, type=FOLDER, metavar="RUN", help="Run folder to write.")
@gathered(
    "plan",
    Plan,
    preset_option,
    config_option,
    settings_option,
    click.option("--steps", metavar="N", type=int, help="Slow steps; the same as --set slow.steps=N."),
    click.option(
        "--rate",
        metavar="NATS",
        type=FiniteRange(0, min_open=True),
        help="Nats that thoughts carry of a text, on average: the least distortion at this rate (objective mean-rate).",
    ),
)
@gathered(
    "start",
    Start,
    click.option("--resume", is_flag=True, help="Go on from the last checkpoint; with --steps N, to another end."),
    click.option(
        "--branch-from",
        type=FOLDER,
        metavar="RUN",
        help="Go on so from another run's checkpoint, and leave that run as it is.",
    ),
    number("--at", "With --branch-from: the checkpoint of this slow step, if that run keeps it.", metavar="STEP"),
    number("--rewarm", "Steps in which the rate rises again where the end is another."),
    number("--decay", "Of slow.schedule=wsd: decay from that checkpoint on, in N steps, and end."),
    click.option("--init-from", type=FOLDER, metavar="RUN", help="Begin with another run's weights and tokenizer."),
)
@tokenizer_options()
@reading_options
@common(seed=None, seed_help="Seed of all that is random; the same as --set seed=N.", code=True)
def command(
    *,
    text: Text,
    out: Path,
    plan: Plan,
    start: Start,
    tokenizer_file: TokenizerFile,
    reading: Reading,
    common: Common,
) -> None:
    """Trains a latent-thought language model, or with --set model.thoughts=0 its autoregressive twin.

    With --set model.kind=masked-diffusion, its decoder without thoughts and without the causal mask.

    Settings come from the preset, then --config, then --set, then --steps, --seed and --dtype. The run folder says what
    they were. A run that was stopped or killed goes on with --resume and ends as if nothing had happened. Ctrl-C, a
    closed terminal (SIGHUP), SIGTERM and SIGUSR1 leave the step under way, and save.
    """
    start.check(plan)
    chosen: list[str] = []
    config = plan.config(text.data, start, out, common, chosen.append)

    from ..runs import check_device, leave_of

    device = check_device(common.device)
    from pyro_ltm.data.folder import is_token_folder
    from pyro_ltm.reports.training_plots import plot_run
    from pyro_ltm.training import train

    from ..output import note
    from ..progress import of_training, reporter
    from ..several import only_leader
    from ..sources import remarks

    is_text = not all(map(is_token_folder, text.data))
    if start.resume and is_text and (out / "data.json").is_file():
        note(f"Going on with the data of {out}; text named with --data is not read again.")
    leave = leave_of(config)
    with _interruptible(out, device, leave), reporter() as report:
        run = train(
            config,
            out=out,
            **given(**vars(start), **vars(text)),
            tokenizer=tokenizer_file.load(),
            reading=reading,
            device=device,
            allow_code=common.allow_code,
            **of_training(report, chosen),
            on_note=note,
            on_resume=lambda step, steps: note(_begins(out, step, steps)),
        )
    only_leader()
    plot_run(out)
    if is_text:
        for line in remarks(run.dataset("train").meta):
            note(line)
    _report(run, leave, common.as_json)


@contextlib.contextmanager
def _interruptible(out: Path, device: str, leave: list[str]) -> Iterator[None]:
    """Says how to go on, where training was interrupted.

    Several processes end well then: for `torchrun` another end is a fault, after which it may start them again.
    """
    from pyro_ltm.errors import UserError
    from pyro_ltm.reports.training_plots import plot_run

    from ..failure import Failure, before_training, code_of
    from ..output import note
    from ..several import are_several, only_leader

    again = ["pyro-ltm", "train", "--resume", "--out", str(out), *leave]
    again += [] if device == "cpu" else ["--device", device]
    try:
        yield
    except KeyboardInterrupt as stopped:
        if not (out / "config.toml").is_file():
            raise before_training(stopped, out / "data") from None
        if not str(stopped):  # not by the trainer, which says where it stands
            message = f"interrupted at once; go on from the last checkpoint with: {shlex.join(again)}"
            raise Failure(message, code_of(stopped)) from None
        only_leader()
        with contextlib.suppress(UserError):  # before the first step there is nothing to draw
            plot_run(out)
        if are_several():
            note(f"Stopped: {stopped}; go on with the same command and --resume")
            raise click.exceptions.Exit(0) from None
        raise Failure(f"{stopped}; go on with: {shlex.join(again)}", code_of(stopped)) from None


def _begins(out: Path, step: int, steps: int) -> str:
    """Where a run goes on."""
    if step == 0:
        return f"{out}: no step was saved before it was stopped; it starts from step 0."
    if step == steps:
        return f"{out}: all its {steps} steps are done; more with --steps."
    return f"{out}: goes on from step {step} of {steps}."


def base_config(
    name: str | None,
    data: Sequence[str],
    out: Path | None = None,
    init_from: Path | None = None,
    *,
    thoughts: bool | None = None,
    allow_code: bool = False,
    say: Callable[[str], None] | None = None,
) -> Config:
    """The preset called `name`, else the configuration that a run begins with where none is given.

    Args:
        thoughts, say: as of `default_preset`.
    """
    from pyro_ltm.presets import preset
    from pyro_ltm.training.launch import starting_config

    if name is None and init_from is None and not (out and (out / "config.toml").is_file()):
        name = default_preset(data, thoughts=thoughts, say=say)
    return preset(name) if name else starting_config(data, out, init_from, allow_code=allow_code)


def configure(
    base: Config, config_file: Path | None, settings: Sequence[str], common: Common, steps: int | None = None
) -> Config:
    """`base` changed by the file, then by settings, then by the options of single ones."""
    from pyro_ltm.config import apply_settings, load_toml, merge

    if config_file is not None:
        base = load_toml(config_file, base, allow_code=common.allow_code)
    config = apply_settings(base, settings)
    if steps is not None:
        config = merge(config, {"slow": {"steps": steps}}, where="--steps")
    for name, value in (("seed", common.seed), ("dtype", common.dtype)):
        config = config if value is None else merge(config, {name: value}, where=f"--{name}")
    return config


def default_preset(
    data: Sequence[str], *, thoughts: bool | None = None, say: Callable[[str], None] | None = None
) -> str:
    """The preset that `data` are trained by where none is named; says which, and why.

    Args:
        thoughts: the run is for what its thoughts carry, as far as that is known: then `nano-thoughts` takes the place
            of `nano`. None: there is no such choice, and `nano`, the usual preset, goes without saying.
        say: is given the line; default: it is printed as a note.
    """
    from pyro_ltm.data.presets import chosen_preset

    from ..output import note

    name, why = chosen_preset(list(data))
    say, other = say or note, "another: --preset NAME"
    if thoughts and name == "nano":
        name, usual = "nano-thoughts", name
        say(f"Trained by the preset {name}, for --rate asks for features; without it by {usual}; {other}.")
    elif name != "nano" or thoughts is not None:
        features = "; for features: --rate 40" if thoughts is False else ""
        say(f"Such text is trained by the preset {name}, for {why}; {other}{features}.")
    return name


MISSED = 0.05
"""Share by which the rate on held-out text may miss what was asked for, before it is said how to come closer."""


def _say_rate(run: Run, rate: float | None) -> None:
    """The rate on validation text beside the one that was asked for, where one was."""
    from ..output import nats, note, say

    objective = run.loop.objective
    asked = getattr(objective, "nats", None) if run.config.objective.name == "mean-rate" else None
    if asked is None or rate is None:
        return
    say(f"  {nats(rate, 1):>9}  nats of thoughts a sequence, where {asked:g} were asked for")
    if abs(rate / asked - 1) > MISSED:
        note(f"The rate missed {asked:g} nats by more than {MISSED:.0%}: take more --steps, or --set fast.steps=N.")


def _report(run: Run, leave: list[str], as_json: bool) -> None:
    """The figures, where the run was written, and what to try next."""
    from pyro_ltm.runs.description import file_sizes
    from pyro_ltm.runs.metrics import summarize

    from ..output import emit, nats, note, say, show_files, show_next

    summary = summarize(run.folder)
    if as_json:
        emit({"run": str(run.folder), "step": run.step, **summary, "files": file_sizes(run.folder)})
        return
    if summary["validation"] is None:
        note("The data have no validation split, so nothing was held out to measure on.")
    else:
        level = summary["validation"]["nats_per_token"]
        say("Nats a token on validation text (lower is better):")
        say(f"  {nats(summary['unigram_nats_per_token']):>9}  unigram, knowing only how common each token is")
        say(f"  {nats(summary['untrained_nats_per_token']):>9}  untrained model")
        kind = "exact, it has no thoughts" if run.config.model.is_exact else "an upper bound"
        say(f"  {nats(level):>9}  this model, {kind}")
        _say_rate(run, summary["validation"].get("kl_nats_per_sequence"))
        slow, best = run.config.slow, summary["best_validation"]
        if slow.average:
            level = summary["validation"]["average_nats_per_token"]
            say(f"  {nats(level):>9}  the average of its weights (--weights average)")
        if slow.keep_best and best is not None:
            say(f"  {nats(best['nats_per_token']):>9}  at its best validation, step {best['step']} (--weights best)")
    show_files(run.folder)
    show_next(
        ["pyro-ltm", "evaluate", str(run.folder), *leave],
        ["pyro-ltm", "generate", str(run.folder), "--num", "3", *leave],
    )
