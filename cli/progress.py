"""Progress on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from pyro_ltm.errors import visible

from .output import figure, margin, note
from .several import are_several

if TYPE_CHECKING:
    from pyro_ltm.training import Progress

SECONDS_BETWEEN_LINES = 10.0


class Reporter(AbstractContextManager["Reporter"]):
    """Shows how far work has come. Use as a context manager, which takes the bar away at the end."""

    @abstractmethod
    def preparing(self, what: str, pieces: int, characters: int) -> None:
        """Text read so far, as `prepare` reports it."""

    @abstractmethod
    def training(self, progress: Progress) -> None:
        """A slow step or a validation, as the trainer reports it."""

    @abstractmethod
    def counting(self, what: str, total: int | None, unit: str = "sequences") -> Callable[[int, float], None]:
        """Begins to count units of `total`; call the result with the units done and the nats a token so far, or NaN."""


def reporter() -> Reporter:
    """The reporter that suits stderr."""
    from rich.console import Console

    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    interactive = console.is_terminal and not console.is_dumb_terminal
    return BarReporter(console) if interactive else LineReporter()


def of_training(report: Reporter, chosen: Sequence[str] = ()) -> dict[str, Any]:
    """Callbacks of `train`: what is shown while a run is prepared and trained.

    Args:
        chosen: lines said when training begins, not before, so that of what is refused there is one line.
    """
    from .estimate import announce

    def begin(*about: Any) -> None:
        for line in chosen:
            note(line)
        announce(*about)

    return {
        "on_prepare": report.preparing,
        "on_begin": begin,
        "on_progress": report.training,
        "on_interrupt": say_stopping,
    }


def say_stopping() -> None:
    """Says that training ends. Several processes end no sooner by a second signal."""
    note("Saving, all processes together." if are_several() else "Saving; Ctrl-C once more to stop at once.")


class LineReporter(Reporter):
    """Plain lines, at most one every few seconds, for logs and pipes."""

    def __init__(self, seconds: float = SECONDS_BETWEEN_LINES):
        self._seconds = seconds
        self._last = 0.0
        self._doing = ""
        self._started: tuple[float, int] | None = None

    def __exit__(self, *error: object) -> None:
        pass

    def preparing(self, what: str, pieces: int, characters: int) -> None:
        """A line where another kind of work begins, then now and then."""
        if self._due(what != self._doing):
            note(f"{PREPARING.get(what, what)}: {_amount(what, characters)}")
        self._doing = what

    def training(self, progress: Progress) -> None:
        """A line for each validation, for the first and the last step, and now and then."""
        if progress.validation is not None:
            note(validation_line(progress))
            return
        first = self._started is None
        if first or progress.step == progress.decoder_warmup_steps + 1:  # from there on each step takes longer
            self._started = (time.monotonic(), progress.step)
        if self._due(first or progress.step == progress.steps):
            note(f"step {progress.step}/{progress.steps}  {figures(progress)}{self._left(progress)}")

    def counting(self, what: str, total: int | None, unit: str = "sequences") -> Callable[[int, float], None]:
        """A line now and then."""
        of = "" if total is None else f"/{total}"

        def count(done: int, nats_per_token: float) -> None:
            if self._due(done == total):
                note(f"{what}: {done}{of} {unit}{_level(nats_per_token)}")

        return count

    def _due(self, always: bool) -> bool:
        now = time.monotonic()
        if not always and now - self._last < self._seconds:
            return False
        self._last = now
        return True

    def _left(self, progress: Progress) -> str:
        """Time left at the pace since the first step seen of this kind, validations included."""
        assert self._started is not None
        started, first = self._started
        done, decoder_only = progress.step - first, progress.step <= progress.decoder_warmup_steps
        last = progress.decoder_warmup_steps if decoder_only else progress.steps
        if not done or progress.step == last:
            return ""
        seconds = int((time.monotonic() - started) / done * (last - progress.step))
        until = "until it is given thoughts" if decoder_only else "left"
        return f"  {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} {until}"


class BarReporter(Reporter):
    """A bar that is redrawn in place; lines go above it."""

    def __init__(self, console: Any):
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[figures]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            refresh_per_second=4,
            expand=True,
        )
        self._task: Any = None
        self._what = ""

    def __enter__(self) -> BarReporter:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def preparing(self, what: str, pieces: int, characters: int) -> None:
        """The characters read; how many there will be is not known."""
        self._show(PREPARING.get(what, what), None, 0, _amount(what, characters))

    def training(self, progress: Progress) -> None:
        """The bar, and a line above it for each validation."""
        if progress.validation is not None:
            self._bars.console.print(validation_line(progress), soft_wrap=True)
        else:
            done = f"{progress.step}/{progress.steps}"
            decoder_only = progress.step <= progress.decoder_warmup_steps
            what, last = ("decoder alone", progress.decoder_warmup_steps) if decoder_only else ("train", progress.steps)
            self._show(what, last, progress.step, f"{done}  {figures(progress, short=True)}")

    def counting(self, what: str, total: int | None, unit: str = "sequences") -> Callable[[int, float], None]:
        """The bar."""
        of = "" if total is None else f"/{total}"
        self._show(visible(what), total, 0, "")
        return lambda done, nats: self._show(visible(what), total, done, f"{done}{of} {unit}{_level(nats)}")

    def _show(self, what: str, total: int | None, done: int, text: str) -> None:
        if what != self._what:
            # A new task for each kind of work: the time left is reckoned from its own pace, and resumed work
            # does not count what was done before.
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._what, self._task = what, self._bars.add_task(what, total=total, completed=done, figures=text)
        else:
            self._bars.update(self._task, completed=done, figures=text)


PREPARING = {
    "tokenizer": "reading text for the tokenizer",
    "encode": "text to tokens",
    "skip": "going on: reading text whose tokens are there",
    "restart": "what was left of an earlier call is of no use, so from the beginning",
    "check": "reading tokens to see that they are undamaged",
}


def _amount(what: str, size: int) -> str:
    return f"{size:,} {'bytes' if what == 'check' else 'characters'}"


def figures(progress: Progress, *, short: bool = False) -> str:
    """The figures of a slow step, on one line."""
    speed = f"{progress.tokens_per_second:,.0f}"
    if progress.figure in WITHOUT_THOUGHTS:
        return f"{speed} {'tok/s' if short else 'tokens/s'}  {_whole(progress, progress.bound)}"
    level = {"own_noise": "score on its own noise", "joint": "-log p(x, z)"}.get(progress.figure, "bound")
    if short:
        parts = f"rate {figure(progress.rate, 1)} dist {figure(progress.distortion, 3)}"
        return f"{speed} tok/s  {level} {figure(progress.bound, 3)} {parts}"
    return (
        f"{speed} tokens/s  {level} {figure(progress.bound, 3)} nats/token  "
        f"rate {figure(progress.rate, 2)} nats/sequence  distortion {figure(progress.distortion, 3)} nats/token"
    )


def validation_line(progress: Progress) -> str:
    """A validation, on one line."""
    bound = progress.validation
    assert bound is not None
    error = margin(bound.nats_per_token_stderr, 3)
    start = f"step {progress.step}/{progress.steps}  validation "
    end = "" if progress.average is None else f"  average of weights {figure(progress.average.nats_per_token, 3)}"
    end += "  best so far" if progress.is_best else ""
    if progress.figure in WITHOUT_THOUGHTS:
        return start + _whole(progress, bound.nats_per_token, error) + end
    return (
        f"{start}bound {figure(bound.nats_per_token, 3)}{error} nats/token  "
        f"rate {figure(bound.kl_nats_per_sequence, 2)} nats/sequence  "
        f"distortion {figure(bound.distortion_nats_per_token, 3)} nats/token{end}"
    )


WITHOUT_THOUGHTS = {"exact": "exact", "diffusion": "an upper bound"}
"""What the level of a model without thoughts is, by its figure: there is nothing to split it into."""


def _whole(progress: Progress, nats_per_token: float, error: str = "") -> str:
    return f"{figure(nats_per_token, 3)}{error} nats/token, {WITHOUT_THOUGHTS[progress.figure]}"


def _level(nats_per_token: float) -> str:
    """A level so far; what kind of figure it is says the name of what is counted: not every one is a bound."""
    return "" if math.isnan(nats_per_token) else f"  {figure(nats_per_token, 3)} nats/token"
