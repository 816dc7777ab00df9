"""Threads that share a decoder get the numbers that each would get alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.tiny import D, N, enlarge, telling_model, tiny_batch, tiny_config

from pyro_ltm.model import LatentThoughtModel, TokenSequence
from pyro_ltm.model.kernels.head import FrozenWeight

TIMES = 20


def many(work):
    """What `work` gives in one thread, again and again."""
    with torch.no_grad():
        return [work() for _ in range(TIMES)]


def test_what_passes_its_thoughts_by_does_not_change_what_another_computes():
    torch.set_default_dtype(torch.float64)
    model, batch = telling_model()
    z = torch.randn(4, N, D)

    def alone():
        return model.log_prob_without_thoughts(batch)

    def thoughtful():
        return TokenSequence(model.decoder, z, batch).log_prob(batch.targets)

    expected = many(alone)[0], many(thoughtful)[0]
    assert not torch.allclose(*expected)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(many, work) for work in (alone, thoughtful) * 2]
        for job, its in zip(jobs, expected * 2, strict=True):
            for found in job.result():
                torch.testing.assert_close(found, its, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_fuse_and_drop_weights_together(dtype):
    """Pyro's handlers are one stack for all threads, so that fits cannot run beside one another; densities can."""
    model = LatentThoughtModel(tiny_config(), dtype)
    enlarge(model.decoder, seed=0)
    batches, thoughts = [tiny_batch(seed=seed) for seed in range(4)], torch.randn(4, 3, N, D)

    def slope(index):
        z = thoughts[index].clone().requires_grad_()
        with model.fused_weights():
            likelihood = TokenSequence(model.decoder, z, batches[index])
            return torch.autograd.grad(likelihood.log_prob(batches[index].targets).sum(), z)[0]

    expected = [slope(index) for index in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for index, found in enumerate(pool.map(slope, [0, 1, 2, 3] * TIMES)):
            # As tests/inference/test_fused_weights.py: weights fused or not, products round otherwise.
            torch.testing.assert_close(
                found, expected[index % 4], atol=1e-4 if dtype == torch.float32 else 2**-4, rtol=2**-6
            )
    assert model.decoder._fused_users == 0
    assert model.decoder.layers[0].attention.fused_weight is None


def test_each_thread_has_logits_of_its_own():
    frozen = FrozenWeight(torch.randn(30, D), many=True)
    hidden = torch.randn(5, D)
    here = frozen.scratch(hidden, torch.float32)
    assert frozen.scratch(hidden, torch.float32) is here
    with ThreadPoolExecutor(1) as pool:
        there = pool.submit(frozen.scratch, hidden, torch.float32).result()
    assert there is not here
