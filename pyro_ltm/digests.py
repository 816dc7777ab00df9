"""Checksums in files that are read again: one that was damaged on its disk is told from one that is as it was written.

CRC-32 finds every flipped bit, and of all other damage all but one in 2^32. It is no defence against forgery. Files of
earlier releases have none, and are taken as they are.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pyro_ltm.errors import Damaged

if TYPE_CHECKING:
    from torch import Tensor

KEY = "crc32"
_SEAL = re.compile(rf'(?:, )?"{KEY}": "([0-9a-f]{{8}})"\}}$')
LONGEST = 24
"""Characters of a seal at the end of a text."""


def sealed(meta: str, tensors: Mapping[str, Tensor]) -> str:
    """A JSON object as text with the checksum of itself and of tensors as its last key."""
    comma = "" if meta == "{}" else ", "
    return f'{meta[:-1]}{comma}"{KEY}": "{_of_tensors(meta, tensors)}"}}'


def check_seal(metadata: Iterable[str], tensors: Mapping[str, Tensor]) -> None:
    """Raises Damaged where texts that were `sealed` with these tensors are not as they were."""
    for text in metadata:
        if (seal := _SEAL.search(text, max(0, len(text) - LONGEST))) and seal[1] != _of_tensors(
            f"{text[: seal.start()]}}}", tensors
        ):
            raise Damaged(f"its checksum is not that of what it holds ({KEY})")


def with_digest(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with its checksum as the last key."""
    return {**value, KEY: _of_json(value)}


def without_digest(value: dict[str, Any]) -> dict[str, Any]:
    """The object that `with_digest` was given. Raises Damaged where its checksum is another."""
    rest = {key: entry for key, entry in value.items() if key != KEY}
    if KEY in value and value[KEY] != _of_json(rest):
        raise Damaged(f"its checksum is not that of what it holds ({KEY})")
    return rest


def _of_json(value: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}"


def _of_tensors(meta: str, tensors: Mapping[str, Tensor]) -> str:
    """Of a text, and of the names, types, shapes and bytes of tensors."""
    import torch

    total = zlib.crc32(meta.encode())
    for name, value in sorted(tensors.items()):
        total = zlib.crc32(f"{name} {value.dtype} {tuple(value.shape)}".encode(), total)
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        total = zlib.crc32(content.data, total)
    return f"{total:08x}"
