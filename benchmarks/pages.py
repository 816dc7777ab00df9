"""Pages with tables that are made from files of figures, and how a new file gets into them.

In a page (README.md, docs/*.md, benchmarks/notes/*.md) a table stands between `<!-- NAME -->` and `<!-- end NAME -->`.
The figures are in benchmarks/KIND-DATE.json, of which the newest of each kind counts.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "benchmarks"
Tables = Mapping[str, str]


def pages() -> list[Path]:
    """All pages that may have tables."""
    return [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(FIGURES.glob("notes/*.md"))]


def newest(kind: str) -> dict[str, Any]:
    """The committed figures of a kind: `protocols`, `twins`, `field` or `speed`."""
    path = max(FIGURES.glob(f"{kind}-????-??-??.json"))
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def filled(text: str, tables: Tables) -> str:
    """`text` with each part between `<!-- NAME -->` and `<!-- end NAME -->` made anew, where `tables` has it.

    Raises:
        ValueError: a part does not end.
    """
    for name, table in tables.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        text, count = pattern.subn(lambda match, table=table: f"{match[1]}{table}{match[2]}", text)
        if count != text.count(f"<!-- {name} -->"):
            raise ValueError(f"'{name}' begins more often than it ends")
    return text


def table(columns: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown; it ends with the end of a line."""
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (columns, *rows)]
    return "\n".join([lines[0], "|---" * len(columns) + "|", *lines[1:]]) + "\n"


def write(tables: Tables) -> None:
    """Each of `tables` into its places in the pages, where it has any."""
    for page in pages():
        before = page.read_text(encoding="utf-8")
        if (after := filled(before, tables)) != before:
            page.write_text(after, encoding="utf-8")


def publish(
    kind: str, file: Path, tables: Callable[[dict[str, Any]], Tables], folders: Mapping[Path, str] | None = None
) -> dict[str, Any]:
    """Put a file's figures into benchmarks/KIND-DATE.json, and their tables into the pages; gives all of the kind.

    What the file measured takes the place of the same in the newest figures; the rest of those stays. `folders` of this
    machine are written by the names that the pages use.
    """
    before = newest(kind)
    measured = renamed(json.loads(file.read_text(encoding="utf-8")), {file.parent: f"runs/{kind}", **(folders or {})})
    found = {**before, **measured}
    if found != before:
        path = FIGURES / f"{kind}-{datetime.datetime.now(datetime.timezone.utc).date()}.json"
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    write(tables(found))
    return found


def renamed(value: Any, folders: Mapping[Path, str]) -> Any:
    """`value` with folders by other names, wherever a text in it has their absolute path."""
    if isinstance(value, dict):
        return {key: renamed(entry, folders) for key, entry in value.items()}
    if isinstance(value, list):
        return [renamed(entry, folders) for entry in value]
    if isinstance(value, str):
        for folder, name in folders.items():
            value = value.replace(f"{folder.resolve()}/", f"{name}/")
    return value
