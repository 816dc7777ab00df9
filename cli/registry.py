"""A registry for people and for JSON: `pyro-ltm guides`, `pyro-ltm objectives` and so on."""

from __future__ import annotations

import inspect
import shlex
import textwrap
from collections.abc import Mapping
from typing import Any

SHAPE = ("thoughts", "dim", "layers", "vocab_size", "max_length", "seed")
"""Arguments that come from the decoder and the run, not from whoever names a member."""


def describe(members: Mapping[str, type[Any]]) -> list[dict[str, Any]]:
    """Each member's name, its card and its options with their defaults."""
    found = []
    for name, kind in members.items():
        card = kind.card
        found.append(
            {
                "name": name,
                "usage": ":".join([name, *(f"[{place.upper()}]" for place in kind.arguments)]),
                "summary": card.summary,
                "cost": card.cost,
                "when": card.when,
                "reference": card.reference,
                "options": {
                    entry.name: entry.default
                    for entry in inspect.signature(kind).parameters.values()
                    if entry.name not in SHAPE and entry.default is not entry.empty
                },
            }
        )
    return found


def show(kind: str, members: Mapping[str, type[Any]], as_json: bool, *examples: str) -> None:
    """Prints what there is to know of members, as JSON under `kind` or for people, with commands that name some."""
    from .output import emit, say, show_next, stdout_console

    described = describe(members)
    if as_json:
        emit({kind: described})
        return
    width = min(stdout_console().width, 110)
    for entry in described:
        say(f"{entry['usage']}  ({entry['reference']})")
        options = ", ".join(f"{key} = {_written(value)}" for key, value in entry["options"].items())
        lines = {"": entry["summary"], "Cost: ": entry["cost"], "Use it: ": entry["when"], "Options: ": options}
        for label, text in lines.items():
            if text:
                say(textwrap.fill(text, width, initial_indent=f"    {label}", subsequent_indent=" " * 8))
    say()
    show_next(*map(shlex.split, examples))


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
