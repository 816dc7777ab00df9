"""A run whose decoder has every option: killed, resumed, loaded, scored beside its twin, and counted."""

from __future__ import annotations

import pytest
import torch

import pyro_ltm as ltm
from benchmarks.table import parameters
from pyro_ltm.config import ModelConfig, apply_settings
from pyro_ltm.model import Decoder
from pyro_ltm.presets import PRESETS
from pyro_ltm.runs import Run
from pyro_ltm.runs.description import count_parameters
from pyro_ltm.runs.twin import check_twin

OPTIONS = [
    *("model.qk_norm=true", "model.logit_softcap=15", "model.value_embeddings=true", "model.feed_forward=relu2"),
    *("model.tied=false", "model.zero_init=true", "model.zero_cross_attention=true", "model.dropout=0.1"),
    "model.thought_dim=3",
]
TINY = [
    *("model.dim=16", "model.layers=2", "model.heads=2", "model.thoughts=2", "model.max_length=16", "model.window=4"),
    *("data.vocab_size=280", "data.sequence_length=16", "fast.steps=1", "slow.steps=4", "slow.batch_size=2"),
    *("slow.eval_every=0", "slow.eval_sequences=2", "slow.warmup=1", "slow.lr=0.01", "slow.accumulate=2"),
    *("slow.decoder_warmup=0.25", "slow.save_every=2"),
]


def test_a_run_with_every_option(tmp_path):
    text = tmp_path / "birds.txt"
    text.write_text("".join(f"The {i % 7}th bird sang {i % 11} songs to the {i % 5} trees.\n" for i in range(400)))
    data = ltm.prepare([str(text)], tmp_path / "tokens", vocab_size=280, sequence_length=16).path
    config = apply_settings(ltm.preset("nano"), [*TINY, *OPTIONS])
    whole = ltm.train(config, data=data, out=tmp_path / "whole")

    def kill(progress):
        if progress.validation is None and progress.step == 3:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        ltm.train(config, data=data, out=tmp_path / "parts", on_progress=kill)
    parts = ltm.train(None, data=None, out=tmp_path / "parts", resume=True)
    ours, theirs = whole.model.state_dict(), parts.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    loaded = Run.load(tmp_path / "parts")
    assert loaded.config == parts.config
    assert loaded.fingerprint == whole.fingerprint
    twin = ltm.train(apply_settings(config, ["model.thoughts=0"]), data=data, out=tmp_path / "twin")
    assert check_twin(loaded, twin) == []
    other = apply_settings(config, ["model.thoughts=0", "model.dropout=0", "model.zero_cross_attention=false"])
    less = ltm.train(other, data=data, out=tmp_path / "less")
    assert check_twin(loaded, less) == ["its model.dropout is 0.0, this run's 0.1"]
    counts = count_parameters(loaded)
    assert counts["total"] == parameters(loaded.config.model) + counts["guide"]
    assert counts["head"] == loaded.config.model.vocab_size * 16


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"feed_forward": "relu2", "qk_norm": True, "value_embeddings": True}])
def test_parameters_are_counted(layers, options):
    config = ModelConfig(vocab_size=30, dim=16, heads=2, layers=layers, thoughts=layers, tied=not options, **options)
    assert sum(parameter.numel() for parameter in Decoder(config).parameters()) == parameters(config)


def test_the_papers_presets_have_none_of_them():
    added = {name.partition("=")[0].removeprefix("model.") for name in OPTIONS}
    for name in ("small", "medium", "large"):
        assert all(getattr(PRESETS[name].model, key) == getattr(ModelConfig(), key) for key in added)
