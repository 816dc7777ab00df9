"""Options of built-in corpora that are drawn: whole numbers by name, behind the corpus's name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pyro_ltm.config import suggest
from pyro_ltm.errors import UserError


def whole_numbers(spec: str, settings: Iterable[str], defaults: Mapping[str, int]) -> dict[str, int]:
    """The numbers that `settings` give, each `name=number`; `defaults` for those left out.

    Args:
        spec: the whole source, for messages.

    Raises:
        UserError: an unknown option, a value that is no whole number, or no documents.
    """
    options = dict(defaults)
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in options:
            raise UserError(
                f"{spec}: unknown option '{name}'{suggest(name, options)}: choose from {', '.join(options)}"
            )
        if not value.isascii() or not value.isdigit():
            raise UserError(f"{spec}: {name} = {value!r}: expected a whole number, such as {name}={options[name]}")
        options[name] = int(value)
    if not options["documents"]:
        raise UserError(f"{spec}: documents = 0: at least 1")
    return options
