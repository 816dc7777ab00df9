"""A registry for people and for JSON: `pyro-ltm guides`, `pyro-ltm objectives` and so on."""

from __future__ import annotations

import inspect
import shlex
import textwrap
from typing import TYPE_CHECKING, Any

import click

from .options import Common, common, examples

if TYPE_CHECKING:
    from pyro_ltm.registry import Registry


def listing(axis: str, what: str, *commands: str, named: str) -> click.Command:
    """The command that lists the members of an axis of `inference.parts.AXES`.

    Args:
        what: they are, in words. commands: to try next. named: a member with an argument, for the help.
    """
    kind = f"{axis}s"
    name = kind.replace("_", "-")

    @click.command(
        name=name,
        short_help=f"List the {what.partition(',')[0]}.",
        epilog=examples(f"pyro-ltm {name}", f"pyro-ltm {name} --json"),
        help=f"Lists the {what}: what each is, what it costs, when to use it, and the paper it comes from.\n\n"
        f"A name takes its arguments after colons, as in {named}; as settings, options go under [{axis}]. With --json, "
        f"an object whose `{kind}` have name, summary and reference.",
    )
    @common(unused=("seed", "device", "dtype"))
    def command(*, common: Common) -> None:
        from pyro_ltm.inference.parts import AXES

        show(kind, AXES[axis], common.as_json, *commands)

    return command


def describe(members: Registry[Any]) -> list[dict[str, Any]]:
    """Each member's name, its card, its options with their defaults, and where it comes from.

    One of an installed package that cannot be imported has a `problem` in place of these.
    """
    from pyro_ltm.errors import UserError

    found = [{**_described(name, kind), "source": "pyro-ltm"} for name, kind in members.items()]
    for one in members.installed():
        try:
            entry = _described(one.name, members[one.name])
        except UserError as error:
            entry = {"name": one.name, "problem": str(error)}
        found.append({**entry, "source": one.source})
    return found


def _described(name: str, kind: type[Any]) -> dict[str, Any]:
    from pyro_ltm.registry import SHAPE, parameters_of

    card, arguments = getattr(kind, "card", None), getattr(kind, "arguments", ())
    return {
        "name": name,
        "usage": ":".join([name, *(f"[{place.upper()}]" for place in arguments)]),
        "summary": card.summary if card else (inspect.getdoc(kind) or "").partition("\n")[0],
        "cost": card.cost if card else "",
        "when": card.when if card else "",
        "reference": card.reference if card else "",
        "options": {
            entry.name: entry.default
            for entry in parameters_of(kind).values()
            if entry.name not in SHAPE and entry.default is not entry.empty
        },
    }


def show(kind: str, members: Registry[Any], as_json: bool, *examples: str) -> None:
    """Prints what there is to know of members, as JSON under `kind` or for people, with commands that name some."""
    from .output import emit, say, show_next, stdout_console

    described = describe(members)
    if as_json:
        emit({kind: described})
        return
    width = min(stdout_console().width, 110)
    for entry in described:
        package = "" if entry["source"] == "pyro-ltm" else f"  [{entry['source']}]"
        if "problem" in entry:
            say(f"{entry['name']}{package}")
            say(textwrap.fill(entry["problem"], width, initial_indent="    Not usable: ", subsequent_indent=" " * 8))
            continue
        reference = f"  ({entry['reference']})" if entry["reference"] else ""
        say(f"{entry['usage']}{reference}{package}")
        options = ", ".join(f"{key} = {_written(value)}" for key, value in entry["options"].items())
        lines = {"": entry["summary"], "Cost: ": entry["cost"], "Use it: ": entry["when"], "Options: ": options}
        for label, text in lines.items():
            if text:
                say(textwrap.fill(text, width, initial_indent=f"    {label}", subsequent_indent=" " * 8))
    say()
    show_next(*map(shlex.split, examples))


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
