"""Registries: names to classes, once per axis, and the card by which a reader chooses."""

from __future__ import annotations

import inspect
import math
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from pyro_ltm.config import Component, suggest
from pyro_ltm.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Card:
    """A description of one class of a registry, for who has to choose: a line for each attribute.

    Attributes:
        summary: what it is. cost: what it costs, compared with the cheapest of its kind. when: when to use it.
        reference: the paper it comes from, as `arXiv:...` or author and year.
    """

    summary: str
    cost: str
    when: str
    reference: str


def check_flags(kind: type, fields: Container[str] = ()) -> None:
    """Raises TypeError where `kind` sets a flag that no class above it declares: a misspelt one would say nothing.

    Args:
        kind: a class; its flags are attributes that are True or False. fields: those that are none, of a dataclass.
    """
    known = {name for parent in kind.__mro__[1:] for name in vars(parent)}
    for name, value in vars(kind).items():
        if isinstance(value, bool) and name not in known and name not in fields and not name.startswith("_"):
            raise TypeError(f"{kind.__name__}.{name}: no such flag{suggest(name, known)}")


class Registered(Protocol):
    """The attributes of every class in a registry: how a reader chooses it, and options that may follow its name."""

    card: ClassVar[Card]
    arguments: ClassVar[tuple[str, ...]]


T = TypeVar("T", bound=Registered)


class Registry(Generic[T], Mapping[str, type[T]]):
    """Names to classes, once per axis, used only at the edge (command line, TOML).

    A name may carry arguments: `renyi:0.5:16` stands for the class `renyi` with the first two of the options that it
    lists in `arguments`; `low-rank:rank=8` names the option.
    """

    def __init__(self, axis: str, classes: Mapping[str, type[T]]):
        self.axis = axis
        self._classes = dict(classes)

    def __getitem__(self, name: str) -> type[T]:
        if name not in self._classes:
            raise UserError(f"unknown {self.axis} '{name}'{suggest(name, self)}: choose from {', '.join(self)}")
        return self._classes[name]

    def __contains__(self, name: object) -> bool:
        return name in self._classes  # Mapping's own asks `[]`, which raises UserError and no KeyError

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)

    def parse(self, text: str) -> Component:
        """The component that `text` (`name` or `name:argument:...`) stands for.

        Raises:
            UserError: unknown name, too many arguments, or an argument of the wrong type.
        """
        name, *given = text.split(":")
        kind = self[name]
        places = kind.arguments
        parameters = inspect.signature(kind).parameters
        usage = ":".join([name, *(place.upper() for place in places)])
        options: dict[str, Any] = {}
        for index, argument in enumerate(given):
            key, named, value = argument.rpartition("=")
            if not named and index >= len(places):
                raise UserError(f"{self.axis} '{text}': too many arguments, write {usage}")
            key = key if named else places[index]
            default = parameters[key].default if key in parameters else value
            options[key] = _read(value, type(default), f"{self.axis} '{text}': {key}")
        return Component(name=name, options=options)

    def build(self, component: Component, **shared: Any) -> T:
        """An object of the class that `component` names; `shared` arguments go only to classes that take them.

        Raises:
            UserError: unknown name, unknown option, or an option of the wrong type or out of its range.
        """
        if ":" in component.name:
            parsed = self.parse(component.name)
            component = Component(name=parsed.name, options={**parsed.options, **component.options})
        kind = self[component.name]
        parameters = inspect.signature(kind).parameters
        for key, value in component.options.items():
            if key not in parameters or key in shared:
                known = [name for name in parameters if name not in shared]
                raise UserError(
                    f"unknown option {self.axis}.{key}{suggest(key, known)}: "
                    f"'{component.name}' takes {', '.join(known) or 'none'}"
                )
            _check_type(f"{self.axis}.{key}", value, parameters[key].default)
        taken = {key: value for key, value in shared.items() if key in parameters}
        # 1 is a fine way to write 1.0, but a tensor made of it would hold whole numbers.
        options = {
            key: float(value) if isinstance(parameters[key].default, float) else value
            for key, value in component.options.items()
        }
        return kind(**options, **taken)


def _read(text: str, wanted: type, name: str) -> Any:
    """`text` as a value of the type `wanted`. Raises UserError naming `name`."""
    try:
        if wanted is bool:
            return {"true": True, "false": False}[text.lower()]
        return wanted(text) if wanted in (int, float) else text
    except (ValueError, KeyError):
        kinds = {bool: "true or false", int: "a whole number", float: "a number"}
        raise UserError(f"{name} = '{text}': expected {kinds[wanted]}") from None


def _check_type(name: str, value: Any, default: Any) -> None:
    wanted = type(default)
    good = isinstance(value, wanted) or (wanted is float and isinstance(value, int))
    if wanted in (bool, int, float, str) and (not good or (isinstance(value, bool) and wanted is not bool)):
        raise UserError(f"{name} = {value!r}: expected a value such as {default!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} = {value!r}: expected a finite number, such as {default!r}")
