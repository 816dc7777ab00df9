"""An option: a dataclass field with its one-line meaning and its range, by which a value is checked."""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from dataclasses import field
from typing import Any

from pyro_ltm.errors import UserError


def option(
    default: Any,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple = (),
    added: bool = False,
) -> Any:
    """A dataclass field with its meaning and its range (`low` and `high` are inclusive).

    `added`: runs of earlier versions do not name it; they were made as its default says.
    """
    return field(default=default, metadata={"doc": doc, "low": low, "high": high, "choices": choices, "added": added})


def suggest(word: str, known: typing.Iterable[str]) -> str:
    """` (did you mean 'x'?)` when one of `known` is close to `word`, else the empty string."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def check_ranges(config: Any, section: str) -> None:
    """Raises UserError when a field of the dataclass `config` has the wrong type or lies out of its range."""
    for entry in dataclasses.fields(config):
        if "doc" in entry.metadata:
            _check_range(f"{section}.{entry.name}".lstrip("."), getattr(config, entry.name), entry)


def _check_range(name: str, value: Any, entry: dataclasses.Field[Any]) -> None:
    doc, choices, low, high = (entry.metadata[key] for key in ("doc", "choices", "low", "high"))
    wanted = type(entry.default)
    good_type = isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))
    if not good_type or (wanted is float and not math.isfinite(value)):
        raise UserError(f"{name} = {value!r}: expected {_TYPE_NAMES[wanted]} ({doc})")
    if choices and value not in choices:
        raise UserError(f"{name} = {value!r}{suggest(value, choices)}: choose from {', '.join(choices)}")
    if (low is not None and value < low) or (high is not None and value > high):
        bounds = [f"{words} {bound}" for words, bound in (("at least", low), ("at most", high)) if bound is not None]
        raise UserError(f"{name} = {value!r}: must be {' and '.join(bounds)} ({doc})")


_TYPE_NAMES = {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}
