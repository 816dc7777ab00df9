"""Configurations in TOML, in both directions, and settings `key=value` on top of one."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomlkit

from pyro_ltm.config.option import suggest
from pyro_ltm.config.sections import Component, Config
from pyro_ltm.errors import UserError
from pyro_ltm.reading import parse_toml, read_toml

RENAMED = {"slow.alone": "decoder_warmup"}
"""Keys of earlier releases, which are still read, and what they are called now."""


def load_toml(path: Path | str, base: Config | None = None, *, whole: bool = False, allow_code: bool = False) -> Config:
    """The configuration in a TOML file, merged into `base` (default: `Config()`).

    Args:
        whole: the file must name every key, as `dump_toml` does: one that was cut short is not taken for another run.
        allow_code: it may name classes outside of the library, `module:Class`, whose code will be run.

    Raises:
        UserError: the file is missing or no TOML, a key is unknown or missing, a value is out of range, or it names
            code without leave.
    """
    config = read_config(path, base, whole=whole)
    return config if allow_code else without_code(config, path, base)


def without_code(config: Config, path: Path | str, known: Config | None = None) -> Config:
    """`config`. Raises UserError where the file at `path`, from which it is, names code that is not in `known`."""
    before = known.components if known else {}
    for axis, component in config.components.items():
        if component.own_class and component.given is None and component != before.get(axis):
            raise UserError(
                f"{path}: {axis}.name = '{component.name}' is code outside of the library, which runs only with "
                "--allow-code (in Python: allow_code=True): give that if you trust it"
            )
    return config


def read_config(path: Path | str, base: Config | None = None, *, whole: bool = False) -> Config:
    """`load_toml` where what the file names is not run, or is checked later (`without_code`)."""
    path = Path(path)
    try:
        document = read_toml(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration file") from None
    base = base or Config()
    config = merge(_without_options(base) if whole else base, document, where=str(path))
    if whole and (missing := _missing(config, document)):
        raise UserError(f"{path}: damaged: {missing[0]} is missing; put the file back as it was")
    return config


def merge(config: Config, changes: Mapping[str, Any], *, where: str = "") -> Config:
    """`config` with nested `changes` merged into it. Raises UserError naming `where` for a bad key or value."""
    prefix = f"{where}: " if where else ""
    try:
        return typing.cast(Config, _merge(config, changes, ()))
    except UserError as error:
        raise UserError(f"{prefix}{error}") from None


def apply_settings(config: Config, settings: typing.Iterable[str]) -> Config:
    """`config` with `key=value` settings applied in turn; keys are dotted, values are TOML (bare words are strings)."""
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator or not key.strip():
            raise UserError(f"--set {setting}: expected key=value, such as slow.lr=0.001")
        changes = _value(text.strip())
        for part in reversed(key.strip().split(".")):
            changes = {part: changes}
        config = merge(config, changes, where=f"--set {setting}")
    return config


def apply_together(config: Config, settings: Mapping[str, str], *, where: str) -> Config:
    """`config` with settings, dotted keys to values in TOML, applied at once: only all of them need fit together.

    Raises:
        UserError: a key is unknown, a value out of its range, or they do not fit one another; it names `where`.
    """
    changes: dict[str, Any] = {}
    for key, text in settings.items():
        *tables, name = key.split(".")
        place = changes
        for part in tables:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise UserError(f"{where}: {key} and a key above it are both set: leave one out")
        place[name] = _value(text)
    return merge(config, changes, where=where)


def _value(text: str) -> Any:
    """`text` as a value of TOML; itself where it is none, such as a bare word."""
    try:
        document = parse_toml(f"value = {text}")
    except UserError:
        return text
    return document["value"] if len(document) == 1 else text


def dump_toml(config: Config) -> str:
    """`config` as TOML that `load_toml` reads back unchanged, each key with its meaning."""
    return tomlkit.dumps(_filled(tomlkit.document(), config))


def _is_section(value: Any) -> bool:
    return dataclasses.is_dataclass(value)


def _merge(config: Any, changes: Any, path: tuple[str, ...]) -> Any:
    """`config` with `changes` merged into it; `path` says where in the tree it stands."""
    if not isinstance(changes, Mapping):
        raise UserError(
            f"{'.'.join(path)} is a table: set one of its keys, such as {'.'.join(path)}.{_keys(config)[0]}"
        )
    if isinstance(config, Component):
        return _merge_component(config, changes, path)
    values: dict[str, Any] = {}
    for given, change in changes.items():
        key = str(RENAMED.get(".".join((*path, given)), given))
        here = (*path, key)
        if key in values:
            raise UserError(f"{'.'.join(here)} is set twice, once by its name in an earlier release")
        if key not in _keys(config):
            raise UserError(
                f"unknown key {'.'.join(here)}{suggest(key, _keys(config))}: "
                f"known {'in ' + '.'.join(path) if path else 'at the top'} are {', '.join(_keys(config))}"
            )
        current = getattr(config, key)
        if _is_section(current):
            values[key] = _merge(current, change, here)
        else:
            # 1 is a fine way to write 1.0
            values[key] = float(change) if isinstance(current, float) and type(change) is int else change
    implied = config.implied(values) if hasattr(config, "implied") else {}
    return dataclasses.replace(config, **{**implied, **values})


def _merge_component(config: Component, changes: Mapping[str, Any], path: tuple[str, ...]) -> Component:
    """Another name drops the options of the old one; the class that the name stands for checks its own options."""
    options = dict(changes)
    name = options.pop("name", config.name)
    for key, value in {"name": name, **options}.items():
        if not isinstance(value, bool | int | float | str):
            raise UserError(f"{'.'.join((*path, key))} = {value!r}: expected a word, a number, or true or false")
    return Component(name=str(name), options={**(config.options if name == config.name else {}), **options})


def _without_options(config: Config) -> Config:
    """An option that a whole file does not name is as its class has it, whatever the `Config` of today says."""
    values = {key: getattr(config, key) for key in _keys(config)}
    bare: Any = {key: Component(name=one.name) for key, one in values.items() if isinstance(one, Component)}
    return dataclasses.replace(config, **bare)


def _missing(config: Any, document: Any) -> list[str]:
    """Dotted keys that `document` does not name, though the release that wrote it knew them."""
    if isinstance(config, Component):
        return [] if isinstance(document, Mapping) and "name" in document else ["name"]
    missing = []
    for entry in dataclasses.fields(config):
        key, current = entry.name, getattr(config, entry.name)
        if not isinstance(document, Mapping) or (key not in document and not entry.metadata.get("added")):
            missing.append(key)
        elif key in document and _is_section(current):
            missing += [f"{key}.{inner}" for inner in _missing(current, document[key])]
    return missing


def _keys(config: Any) -> list[str]:
    return [entry.name for entry in dataclasses.fields(config)]


def _filled(table: Any, config: Any) -> Any:
    """`table`, or a whole document, with the keys of `config`."""
    if isinstance(config, Component):
        table.update({"name": config.name, **config.options})
        if config.name.startswith("<"):
            table["name"].comment("an object of a Python session: Run.load needs it again")
        return table
    # TOML wants the plain keys before the first table.
    for entry in sorted(dataclasses.fields(config), key=lambda entry: _is_section(getattr(config, entry.name))):
        value = getattr(config, entry.name)
        if entry.metadata.get("optional") and value == type(value)():
            continue
        if _is_section(value):
            table[entry.name] = _filled(tomlkit.table(), value)
        else:
            item = tomlkit.item(value)  # truth values, too, can carry a comment then
            item.comment(entry.metadata["doc"])
            table[entry.name] = item
    return table
