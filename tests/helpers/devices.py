"""The ways that the model takes on a GPU, on a CPU."""

from __future__ import annotations

import pytest
import torch

from pyro_ltm.model import attention
from pyro_ltm.model.kernels import head


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands in place of blocks; the head in chunks, plainly laid out, padded, whose numbers nobody reads."""
    monkeypatch.setattr(attention, "_has_blocks", lambda x: False)
    monkeypatch.setattr(attention, "_are_few", lambda keys: False)
    monkeypatch.setattr(head, "_in_tiles", lambda hidden, weight: False)
    monkeypatch.setattr(head, "_may_look", lambda x: False)
    monkeypatch.setattr(head, "packs_half", lambda: False)
    monkeypatch.setattr(head, "_pads", lambda matrix: True)


needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
