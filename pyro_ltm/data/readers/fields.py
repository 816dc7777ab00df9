"""From a record to a document: its text, its id, and the errors where they are not there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date
from typing import Any

from pyro_ltm.config import suggest
from pyro_ltm.data.documents import ID, Document, Reading
from pyro_ltm.errors import UserError, one_line

_ABSENT = object()


def plain_text(value: Any, where: str, column: str) -> str:
    """`value` if it is a valid string. Raises UserError naming `where`."""
    if not isinstance(value, str):
        if value is None:
            hint = "(--skip-empty leaves such records out)"
            raise UserError(f"{where}: '{column}' is empty (null); expected a string {hint}")
        raise UserError(f"{where}: '{column}' is {type(value).__name__}; expected a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: '{column}' holds half a character (surrogate U+{ord(value[error.start]):04X} "
            f"at {error.start}); expected valid Unicode"
        ) from None
    return value


def label_text(value: Any, where: str, column: str) -> str:
    """`value` as a label. Raises UserError naming `where`."""
    if isinstance(value, bool | int | float):
        return str(value)
    if isinstance(value, str):
        return plain_text(value, where, column)
    kind = "empty (null)" if value is None else f"a {type(value).__name__}"
    raise UserError(f"{where}: '{column}' is {kind}; a label is a word, a number or a truth value")


def carried(value: Any, where: str, column: str) -> Any:
    """`value` of a column that goes along with the text; a date as text. Raises UserError naming `where`."""
    if isinstance(value, str):
        return plain_text(value, where, column)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, date):
        return value.isoformat()
    kind = type(value).__name__
    raise UserError(f"{where}: '{column}' is {kind}; what is carried along is a word, a number, a truth value or empty")


class Fields:
    """Makes documents of the records of one file, in the way of a `Reading`."""

    def __init__(self, reading: Reading, to_text: Callable[[Any, str, str], str] = plain_text):
        """`to_text` makes text of a value, given where it stands and its column, or raises UserError."""
        self.reading = reading
        self.column = reading.column
        self._to_text = to_text
        self._column_seen = False
        self._not_seen: UserError | None = None

    def document(self, record: Mapping[str, Any], where: str) -> Document:
        """The document of a record. Raises UserError: no such column, or something else than text in it."""
        value = _look_up(record, self.column)
        if value is _ABSENT:
            if not self.reading.skip_empty:
                raise no_column(where, self.column, nested_names(record))
            self._not_seen = self._not_seen or no_column(where, self.column, nested_names(record))
            value = None
        else:
            self._column_seen = True
        text = "" if value is None and self.reading.skip_empty else self._to_text(value, where, self.column)
        return Document(text, where, id=self._id(record, where), columns=self._columns(record, where))

    def check_column_seen(self) -> None:
        """Raises UserError when every record lacked the column, which `skip_empty` does not mean."""
        if self._not_seen and not self._column_seen:
            raise self._not_seen

    def _columns(self, record: Mapping[str, Any], where: str) -> dict[str, Any]:
        found = {}
        for name in self.reading.columns:
            if (value := _look_up(record, name)) is _ABSENT:
                raise no_column(where, name, nested_names(record))
            found[name] = carried(value, where, name)
        return found

    def _id(self, record: Mapping[str, Any], where: str) -> str | int | None:
        wanted = self.reading.id_column
        value = _look_up(record, ID if wanted is None else wanted)
        if isinstance(value, str | int) and not isinstance(value, bool):
            return value
        if wanted is None:
            return None
        if value is _ABSENT:
            raise no_column(where, wanted, nested_names(record))
        raise UserError(f"{where}: '{wanted}' is {type(value).__name__}; an id is a string or a whole number")


def no_column(where: str, column: str, names: Iterable[str], also: str = "") -> UserError:
    """The error of a column that is not there; `names` are those that are."""
    names = list(names)
    known = one_line(", ".join(names)) if names else "none"
    return UserError(f"{where}: no column '{column}'{suggest(column, names)}{also}: its columns are {known}")


def nested_names(record: Mapping[str, Any]) -> Iterator[str]:
    """The columns of a record; of an object inside it, those one level down."""
    for name, value in record.items():
        if isinstance(value, Mapping) and value:
            yield from (f"{name}.{inner}" for inner in value)
        else:
            yield name


def _look_up(record: Mapping[str, Any], column: str) -> Any:
    """The value that a record holds under a name or a dotted path; null where the path goes through a null."""
    if column in record:
        return record[column]
    value: Any = record
    for name in column.split("."):
        if value is None and value is not record:
            return None
        if not isinstance(value, Mapping) or name not in value:
            return _ABSENT
        value = value[name]
    return value
