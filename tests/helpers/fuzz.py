"""Files made wrong in many ways, from a seed: bytes, JSON, TOML and tensors; and what a reader may answer to them."""

from __future__ import annotations

import copy
import json
import random
import re
import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyro_ltm.digests import with_digest, without_digest
from pyro_ltm.errors import LONGEST, UserError

SECONDS = 10.0
"""Processor time that a reader may take for one file."""

PATIENCE = 100.0
"""Seconds, whoever else uses the machine, after which a reader that has not come back hangs."""

OBEYED = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]")
"""What a line of error must not hold."""

Mutate = Callable[[random.Random, bytes], bytes]

SCRAPS = [
    *(b"", b"\x00", b"\xff", b"\xed\xa0\x80", b"\x1b[2J", b"\r", b"\n", b"\n\n", b'"', b"'", b"\\", b"\\ud800"),
    *(b"{", b"}", b"[", b"]", b":", b",", b"=", b"#", b"-", b"1e999", b"NaN", b"nan", b"inf", b"null", b"true"),
    *("\u202e".encode(), "\u2028".encode(), b"\xef\xbb\xbf", b"[" * 100_000, b'{"a":' * 10_000, b"9" * 20, b"9" * 5000),
    *(b"x" * 100_000, b" " * 1000, b"0" * 400, b"1e308", b"-1", b"0.5", b"a.a.a.a.a.a"),
]
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3.5, -0.0, 1e-320, 1e99, 1e308, -1e308, float("nan"), float("inf"), 2**31, 2**53),
    *(2**53 + 1, 2**63, 2**64, 10**30, 10**400, "", "text", "0", "\x1b[2J", "\ud800", "\u202e", "a\nb", "\0", "../x"),
    *("x" * 100_000, [], {}, [[]], [None], {"": None}, {"a": {"b": [1]}}, [1, 2, 3], ["a"], [[1.0, "a"]] * 3),
]


class Hang(BaseException):
    """Raised in a reader that does not come back; nothing that it catches."""


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raises Hang where the block takes longer. An alarm that was set before, such as pytest's own, goes on."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def ring(*_: object) -> None:
        raise Hang(f"does not come back within {seconds:g} seconds")

    began, before = time.monotonic(), signal.signal(signal.SIGALRM, ring)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 0.01) if left else 0.0)
        signal.signal(signal.SIGALRM, before)


def answer(read: Callable[[], object], seconds: float = PATIENCE) -> str:
    """What a reader says of a file: the line of its error, or nothing. Fails for all else that it could do."""
    began = time.process_time()
    try:
        with _alarm(seconds):
            read()
        message = ""
    except UserError as error:
        message = str(error)
        assert message
        assert len(message) <= LONGEST
        assert not OBEYED.search(message), repr(message)
    assert time.process_time() - began < SECONDS
    return message


def mutate_bytes(draw: random.Random, content: bytes) -> bytes:
    """A few bytes changed, cut out, doubled or put in."""
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        place = draw.randrange(len(content) + 1)
        end = min(len(content), place + draw.choice((1, 1, 4, 50, 1000)))
        part = content[place:end]
        how = draw.randrange(7)
        if how == 0:
            content = content[:place] + bytes(draw.randrange(256) for _ in part) + content[end:]
        elif how == 1:
            content = content[:place] + bytes(byte ^ (1 << draw.randrange(8)) for byte in part) + content[end:]
        elif how == 2:
            content = content[:place]
        elif how == 3:
            content = content[:place] + content[end:]
        elif how == 4:
            content = content[:end] + part + content[end:]
        elif how == 5:
            content = content[:place] + draw.choice(SCRAPS) + content[place:]
        else:
            content = content[:place] + draw.choice(SCRAPS) + content[end:]
    return content


def mutate_value(draw: random.Random, value: Any) -> Any:
    """A key or an entry taken away, renamed, doubled, moved or of another value, somewhere in what JSON can hold."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    if not places:
        return draw.choice(VALUES)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        holder, key = draw.choice(places)
        if key not in holder if isinstance(holder, dict) else key >= len(holder):
            continue  # went with an earlier change
        how = draw.randrange(7)
        if how == 0:
            del holder[key]
        elif how == 1 and isinstance(holder, dict):
            holder[draw.choice((f"{key}x", "", "later", "\x1b", "step"))] = holder.pop(key)
        elif how == 2:
            other, name = draw.choice(places)
            if name in other if isinstance(other, dict) else name < len(other):
                holder[key] = copy.deepcopy(other[name])
        elif how == 3 and isinstance(holder[key], int | float):
            holder[key] = draw.choice(
                (-holder[key], holder[key] * 10, holder[key] + 1, str(holder[key]), [holder[key]])
            )
        elif how == 4 and isinstance(holder[key], list):
            holder[key] = holder[key] * 2 if draw.random() < 0.5 else holder[key][:-1]
        elif how == 5:
            holder[key] = _deep(draw.choice((20, 40, 200)))
        else:
            holder[key] = draw.choice(VALUES)
    return value


def mutate_json(draw: random.Random, content: bytes) -> bytes:
    """JSON whose structure, or whose bytes, are changed."""
    if draw.random() < 0.3:
        return mutate_bytes(draw, content)
    return _json(mutate_value(draw, json.loads(content)), draw)


def mutate_sealed(draw: random.Random, content: bytes) -> bytes:
    """JSON with a checksum, which is mostly right again after the change."""
    if draw.random() < 0.1:
        return mutate_json(draw, content)
    value = mutate_value(draw, without_digest(json.loads(content)))
    return json.dumps(with_digest(value)).encode()


def mutate_lines(draw: random.Random, content: bytes) -> bytes:
    """JSON lines: one of them changed, the order, the ends, or the bytes."""
    if draw.random() < 0.3:
        return mutate_bytes(draw, content)
    lines = content.splitlines()
    at = draw.randrange(len(lines))
    lines[at] = _json(mutate_value(draw, json.loads(lines[at])), draw)
    if draw.random() < 0.1:
        draw.shuffle(lines)
    return draw.choice((b"\n", b"\n", b"\r\n", b"\n\n")).join(lines) + draw.choice((b"\n", b"\n", b""))


def mutate_toml(draw: random.Random, content: bytes) -> bytes:
    """TOML: lines taken away, doubled, moved, or with another value; or bytes changed."""
    if draw.random() < 0.3:
        return mutate_bytes(draw, content)
    lines = content.splitlines()
    for _ in range(draw.choice((1, 1, 2))):
        at = draw.randrange(len(lines))
        how = draw.randrange(5)
        if how == 0:
            del lines[at]
        elif how == 1:
            lines.insert(draw.randrange(len(lines) + 1), lines[at])
        elif how == 2:
            lines[at] = draw.choice((b"", b'"\\u001b".', b"a.b.")) + lines[at]
        else:
            key = lines[at].split(b"=")[0]
            lines[at] = key + b"= " + draw.choice([*TOML_VALUES, *SCRAPS])
    return b"\n".join(lines)


TOML_VALUES = [
    *(b"0", b"1", b"-1", b"2", b"3", b"1.5", b"-1.5", b"true", b"nan", b"inf", b"1e300", b"9223372036854775807"),
    *(b"[]", b"{}", b"[1, 2]", b"{a = 1}", b"1979-05-27", b"07:32:00", b'"x"', b'"""\na\n"""', b"'''\x1b'''", b"0x10"),
    *(b"9" * 30, b"1_000_000", b'"mean-field:3"', b'"' + b"y" * 100_000 + b'"', b'{name = "low-rank", rank = 1e9}'),
]


def mutate_tensors(draw: random.Random, content: bytes) -> bytes:
    """A safetensors file whose header, whose metadata, or whose bytes are changed."""
    if draw.random() < 0.25:
        return mutate_bytes(draw, content)
    (size,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    names = [name for name in header if name != "__metadata__"]
    first, second = (header[draw.choice(names)] for _ in range(2))
    how = draw.randrange(6)
    if how == 0:
        first["shape"], second["shape"] = second["shape"], first["shape"]
    elif how == 1:
        first["dtype"] = draw.choice(("F64", "F16", "BF16", "I32", "U8", "BOOL", "F8_E4M3", "F4", "C64", "I128", ""))
    elif how == 2:
        header[draw.choice(names)] = header.pop(draw.choice(names))
    elif how == 3:
        first["shape"] = draw.choice(([], first["shape"][::-1], [*first["shape"], 1], [2**62, 4], [0]))
    elif how == 4 and "__metadata__" in header:
        form, text = next(iter(header["__metadata__"].items()))
        mutate = mutate_json if text.startswith("{") else mutate_bytes  # other libraries have plain words there
        header["__metadata__"] = {form: mutate(draw, text.encode()).decode(errors="replace")}
    else:
        header = mutate_value(draw, header)
    if draw.random() < 0.1:
        data = data[: len(data) // 2] + b"\xff" * (len(data) - len(data) // 2)  # not a number, in every type
    text = _json(header, draw)
    return struct.pack("<Q", len(text)) + text + data


def unseal(path: Path) -> None:
    """Takes the checksum out of a file of tensors, as files of earlier releases have none."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    for form, text in header["__metadata__"].items():
        header["__metadata__"][form] = json.dumps({k: v for k, v in json.loads(text).items() if k != "crc32"})
    whole = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(whole)) + whole + content[8 + size :])


def _places(value: Any) -> Any:
    """Every holder and key in a tree."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def _deep(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def _json(value: Any, draw: random.Random) -> bytes:
    """As text, sometimes with a key that is there twice."""
    text = json.dumps(value)
    if draw.random() < 0.1 and text.startswith("{") and len(text) > 2:
        text = f"{text[:-1]}, {text[1:]}"
    return text.encode()
