"""Operations by hand: products with packed weights, and those of a text that is written."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers.tiny import tiny_config

from pyro_ltm.config import Config
from pyro_ltm.inference import Rethinking, build
from pyro_ltm.model.kernels.head import packs
from pyro_ltm.model.kernels.packed import Packed
from pyro_ltm.profiling.operations import count_operations
from pyro_ltm.profiling.writing import measured
from pyro_ltm.runs import Run


@pytest.mark.skipif(not packs(), reason="this build of torch has no packed products")
def test_products_with_packed_weights_count():
    packed = Packed(torch.randn(40, 16), 8, torch.float32)
    assert count_operations(lambda: packed(torch.randn(3, 5, 16))) == 2 * 15 * 16 * 40


class Letters:
    end_of_text = 0

    def encode(self, text):
        return [ord(letter) - ord("a") + 1 for letter in text]

    def decode(self, ids):
        return "".join(chr(ord("a") + i - 1) for i in ids if i)


def test_cost_of_a_written_token(tmp_path):
    """More rounds cost more for each token that is left, and the count is that of all the work."""
    config = Config(model=tiny_config(vocab_size=21, max_length=16, layers=1, thoughts=2))
    config = dataclasses.replace(config, fast=dataclasses.replace(config.fast, steps=2))
    model, loop = build(config)
    run = Run(tmp_path, config, model, loop, Letters(), 0)
    how = {"max_new_tokens": 4, "seed": 1}
    texts, cost = measured(run, prompts=["ab", "cde", "f"], num=2, count=True, **how)
    assert texts == run.generate(prompts=["ab", "cde", "f"], num=2, **how)
    assert cost.tokens == sum(one.tokens + one.ended for one in texts)
    assert cost.seconds_per_token > 0
    counted = count_operations(lambda: run.generate(prompts=["ab", "cde", "f"], num=2, **how))
    assert cost.operations_per_token == counted / cost.tokens
    _, dearer = measured(run, prompts=["ab", "cde", "f"], num=2, rethinking=Rethinking(rounds=3), count=True, **how)
    assert dearer.operations_per_token > 2 * cost.operations_per_token
    _, one = measured(run, prompt="ab", count=True, **how)
    assert one.operations_per_token > 0


def test_texts_are_written_once_where_no_operations_are_asked_for(tmp_path, monkeypatch):
    config = Config(model=tiny_config(vocab_size=21, max_length=16, layers=1, thoughts=2))
    run = Run(tmp_path, config, *build(config), Letters(), 0)
    calls = []
    monkeypatch.setattr(
        Run, "generate", lambda *_, generate=Run.generate, **how: calls.append(how) or generate(run, **how)
    )
    texts, cost = measured(run, prompt="ab", max_new_tokens=4, seed=1)
    assert (len(texts), len(calls), cost.operations_per_token) == (1, 1, None)
