"""Checksums: every flipped bit and every cut is found, and what has none is taken as it is."""

from __future__ import annotations

import json
import re

import pytest
import torch

from pyro_ltm.digests import with_digest, without_digest
from pyro_ltm.errors import Damaged
from pyro_ltm.reading import read_safetensors
from pyro_ltm.runs.folder import FORMAT, write_tensors

TENSORS = {
    "a": torch.tensor([1.5, -2.0, 3.0]),
    "b": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).T,
    "c": torch.tensor(7),
    "d": torch.zeros(0, 3),
}


def test_every_flipped_bit_of_a_file_of_tensors_is_found(tmp_path):
    path = tmp_path / "t.safetensors"
    write_tensors(path, TENSORS, {"of": "crc32"})
    whole = path.read_bytes()
    tensors, header = read_safetensors(path)
    assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())
    assert json.loads(header[FORMAT]).keys() == {"of", "crc32"}
    # A checksum that is no more known as one leaves the rest unchecked: the rest is as it was.
    begin = whole.rindex(b'\\"crc32\\": \\"')
    for place in {*range(len(whole))} - {*range(begin, begin + 24)}:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            found, now = read_safetensors(path)
        except Damaged:
            continue
        # What is left are spaces that fill up the header, and the format's name, at which its reader looks.
        assert whole[place : place + 1] == b" " or FORMAT not in now
        assert all(torch.equal(found[name], value) for name, value in TENSORS.items()), place
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(Damaged, match=re.escape(str(path))):
            read_safetensors(path)


def test_an_object_of_json():
    value = {"a": [1, 2.5, None], "b": {"c": "d"}}
    kept = json.loads(json.dumps(with_digest(value)))
    assert without_digest(kept) == value
    assert without_digest(value) == value, "as an earlier release wrote it"
    for changed in ({"a": [1, 2.6, None]}, {"b": {"c": "e"}}, {"crc32": "00000000"}, {"crc32": None}, {"more": 1}):
        with pytest.raises(Damaged, match="checksum"):
            without_digest({**kept, **changed})
