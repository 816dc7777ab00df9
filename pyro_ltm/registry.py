"""Registries: names to classes, once per axis, and the card by which a reader chooses."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar, cast

from pyro_ltm.config import Component, Scalar, suggest
from pyro_ltm.errors import UserError
from pyro_ltm.plugins import Installed, blamed, find_class, installed


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


SHAPE = ("thoughts", "dim", "decoder_dim", "layers", "vocab_size", "max_length", "seed")
"""Arguments of a member that come from the decoder and the run, not from whoever names it."""


class Registered(Protocol):
    """The attributes of every class in a registry: how a reader chooses it, and options that may follow its name."""

    card: ClassVar[Card]
    arguments: ClassVar[tuple[str, ...]]


M = TypeVar("M", bound="Member")


class Member:
    """Base of what registries name. An object keeps what it was made with, so that a run can write its options down."""

    MADE_WITH: ClassVar[str] = "_made_with"
    has_fields: ClassVar[bool] = False
    """Whether the options of its classes are annotated, as those of a dataclass are."""

    def __init_subclass__(cls) -> None:
        """Raises TypeError where `cls` sets a flag that no class above it declares: a misspelt one would say nothing.

        Flags are attributes that are True or False.
        """
        super().__init_subclass__()
        if Member in cls.__bases__:  # the base of an axis, which declares them
            return
        known = {name for parent in cls.__mro__[1:] for name in vars(parent)}
        if cls.has_fields:
            known |= {name for name, kind in inspect.get_annotations(cls).items() if "ClassVar" not in str(kind)}
        for name, value in vars(cls).items():
            if isinstance(value, bool) and name not in known and not name.startswith("_"):
                raise TypeError(f"{cls.__name__}.{name}: no such flag{suggest(name, known)}")

    def __new__(cls: type[M], *args: Any, **kwargs: Any) -> M:
        """The new object; of its arguments, those that are plain are kept."""
        made = super().__new__(cls)
        kept = [value if isinstance(value, Scalar) else ... for value in args]
        named = {name: value if isinstance(value, Scalar) else ... for name, value in kwargs.items()}
        object.__setattr__(made, cls.MADE_WITH, (kept, named))
        return made


T = TypeVar("T", bound=Registered)


class Registry(Generic[T], Mapping[str, type[T]]):
    """Names to classes, once per axis, used only at the edge (command line, TOML).

    A name may carry arguments: `renyi:0.5:16` stands for the class `renyi` with the first two of the options that it
    lists in `arguments`; `low-rank:rank=8` names the option. Beside the library's own names, which it iterates over,
    it knows those that installed packages announce (entry points in the group `pyro_ltm.<axis>s`), and `module:Class`.
    Code of others is imported when it is named.

    Args:
        base: what every class of the axis extends.
        adapt: makes a member of an object that only extends `base`.
    """

    def __init__(
        self,
        axis: str,
        classes: Mapping[str, type[T]],
        base: type = object,
        adapt: Callable[[Any], T] = lambda given: given,
    ):
        self.axis = axis
        self.base = base
        self._classes = dict(classes)
        self._adapt = adapt

    def __getitem__(self, name: str) -> type[T]:
        if name in self._classes:
            return self._classes[name]
        found = [one for one in self.installed() if one.name == name]
        if len(found) > 1:
            sources = " and ".join(one.source for one in found)
            raise UserError(f"{self.axis} '{name}' is in {sources}: name the class itself, such as {found[0].path}")
        if found:
            return self.checked(found[0].load(), f"{self.axis} '{name}' of the package {found[0].source}")
        if Component(name=name).own_class == name:
            return self.checked(find_class(name), f"{self.axis} {name}")
        if name.startswith("<"):
            raise UserError(
                f"{self.axis} {name} was an object in Python, which no name brings back: give it again, as in "
                f"Run.load(FOLDER, {self.axis}=...)"
            )
        known = [*self, *(one.name for one in self.installed())]
        hint = suggest(name, known)
        raise UserError(
            f"unknown {self.axis} '{name}'{hint}: choose from {', '.join(known)}, or name a class of your own as "
            "module:Class"
        )

    def __contains__(self, name: object) -> bool:
        return name in self._classes  # Mapping's own asks `[]`, which raises UserError and no KeyError

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)

    def installed(self) -> list[Installed]:
        """The classes that installed packages announce under names that are not the library's own."""
        return [one for one in installed(self.axis) if one.name not in self._classes]

    def checked(self, kind: Any, where: str) -> type[T]:
        """`kind`, a class from elsewhere. Raises UserError, beginning with `where`, if it is none of this axis."""
        if not isinstance(kind, type) or not issubclass(kind, self.base):
            raise UserError(f"{where}: does not extend {self.base.__module__}.{self.base.__qualname__}")
        missing = [name for name in dir(kind) if getattr(getattr(kind, name, None), "__isabstractmethod__", False)]
        if missing:
            methods = ", ".join(name + str(_signature(getattr(kind, name))) for name in missing)
            raise UserError(f"{where}: has no {methods}, which every {self.axis} gives")
        return cast("type[T]", kind)

    def parse(self, text: str) -> Component:
        """The component that `text` (`name` or `name:argument:...`) stands for.

        Raises:
            UserError: unknown name, too many arguments, or an argument of the wrong type.
        """
        name, *given = text.split(":")
        if name not in self._classes and (own := Component(name=text).own_class):
            name, given = own, text[len(own) + 1 :].split(":") if text != own else []
        kind = self[name]
        places: tuple[str, ...] = getattr(kind, "arguments", ())
        parameters = parameters_of(kind)
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

    def component(self, part: Any) -> Component:
        """The component that stands for `part`: a name, a class, or an object, which it then holds.

        An object's options are those that it was made with. One that they do not make again, or whose class no name
        brings back (of a notebook, say), gets a name in angle brackets.

        Raises:
            UserError: `part` is none of this axis.
        """
        if isinstance(part, Component):
            return part
        if isinstance(part, str):
            return self.parse(part)
        kind = part if isinstance(part, type) else type(part)
        self.checked(kind, f"{self.axis}: {kind.__module__}.{kind.__qualname__}")
        options, whole = ({}, True) if part is kind else _options(part)
        return Component(name=self._name(kind, whole), options=options).holding(part)

    def _name(self, kind: type, whole: bool) -> str:
        """The name of a class; in angle brackets where it, or not the `whole` object, comes back by a name."""
        names = [name for name, member in self._classes.items() if member is kind]
        path = f"{kind.__module__}:{kind.__qualname__}"
        names += [one.name for one in self.installed() if one.path == path]
        if kind.__module__ != "__main__" and Component(name=path).own_class == path:
            names.append(path)
        return names[0] if names and whole else f"<{kind.__module__}.{kind.__qualname__}>"

    def class_of(self, component: Component) -> type[T]:
        """The class that `component` names, or that of what it holds. Raises UserError for an unknown name."""
        given = component.given
        if given is not None:
            return cast("type[T]", given if isinstance(given, type) else type(given))
        return self[self.parse(component.name).name if ":" in component.name else component.name]

    def build(self, component: Component, **shared: Any) -> T:
        """An object of the class that `component` names; `shared` arguments go only to classes that take them.

        A copy of the object that it holds, where it holds one: whoever gave that keeps it as it is.

        Raises:
            UserError: unknown name, unknown option, or an option of the wrong type or out of its range.
        """
        if component.given is not None and not isinstance(component.given, type):
            return self._adapt(copy.deepcopy(component.given))
        if ":" in component.name and component.given is None:
            parsed = self.parse(component.name)
            component = Component(name=parsed.name, options={**parsed.options, **component.options})
        kind = component.given or self[component.name]
        parameters = parameters_of(kind)
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
        if kind in self._classes.values():
            return kind(**options, **taken)
        for name, entry in parameters.items():
            if entry.default is entry.empty and name not in {**options, **taken}:
                raise UserError(f"{self.axis} {component.name}: needs the option {self.axis}.{name}: it has no default")
        with blamed(f"{self.axis} {component.name}: cannot be made"):
            return self._adapt(kind(**options, **taken))


def parameters_of(kind: type) -> dict[str, inspect.Parameter]:
    """The constructor's parameters by name; with `**kwargs`, which hands them on, those of the class above as well."""
    found: dict[str, inspect.Parameter] = {}
    for parent in kind.__mro__:
        init = vars(parent).get("__init__")
        if init is None or parent is object:
            continue
        own = list(inspect.signature(init).parameters.values())[1:]
        several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        found = {entry.name: entry for entry in own if entry.kind not in several} | found
        if not any(entry.kind is inspect.Parameter.VAR_KEYWORD for entry in own):
            break
    return found


def _signature(method: Any) -> str:
    """The arguments of a method as they are written, without their types: `(batch)`."""
    return f"({', '.join(list(inspect.signature(method).parameters)[1:])})"


def _options(part: Any) -> tuple[dict[str, Scalar], bool]:
    """The plain options that an object was made with, and whether they make it again."""
    args, named = getattr(part, Member.MADE_WITH, ([...], {}))
    parameters = parameters_of(type(part))
    given = {**dict(zip(parameters, args, strict=False)), **named}
    given = {name: value for name, value in given.items() if name not in SHAPE}
    options = {name: value for name, value in given.items() if value is not ...}
    changed = any(
        type(now := getattr(part, name, value)) is type(value) and now != value for name, value in options.items()
    )
    return options, len(args) <= len(parameters) and len(options) == len(given) and not changed


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
