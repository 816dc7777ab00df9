"""The options of rethinking, and functions of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .options import gathered, number

if TYPE_CHECKING:
    from pyro_ltm.inference import Rethinking

F = TypeVar("F", bound=Callable[..., Any])
BOUND = "bound"


def _rethinking(rethink: int, keep: str, refit_every: int | None) -> Rethinking:
    if keep != BOUND and not rethink:
        raise click.UsageError("--keep: chooses among the texts of --rethink, which is not given")
    from pyro_ltm.inference import Rethinking

    own = None if keep == BOUND else _function(keep)
    return Rethinking(rounds=rethink, keep=own, refit_every=refit_every)


def _function(path: str) -> Callable[..., float]:
    """The function that `module:function` names; who types its name has its code run. Raises UserError."""
    from pyro_ltm.errors import UserError
    from pyro_ltm.plugins import find_class

    if not all(path.partition(":")):
        raise click.UsageError(f"--keep {path}: give {BOUND}, or a function of your own as module:function")
    found = find_class(path)
    if not callable(found):
        raise UserError(f"--keep {path}: is a {type(found).__name__}; expected a function, log_reward(z, text)")
    function: Callable[..., float] = found
    return function


def rethinking_options(function: F) -> F:
    """Adds --rethink, --keep and --refit-every, and hands them over as one argument `rethinking`, a `Rethinking`."""
    return gathered(
        "rethinking",
        _rethinking,
        number(
            "--rethink",
            "Fit the thoughts to what was written, and write again, R times.",
            least=0,
            default=0,
            metavar="R",
        ),
        click.option(
            "--keep",
            metavar="HOW",
            default=BOUND,
            show_default=True,
            help="Which of the R + 1 texts: that of the highest bound a token, or by module:function of your own, "
            "log_reward(z, text), whose code is then run.",
        ),
        number("--refit-every", "Fit the thoughts anew to all so far after every M tokens.", metavar="M"),
    )(function)
