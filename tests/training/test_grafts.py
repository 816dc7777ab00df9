"""Grafted runs: made, trained as any other, gone on with, moved, and scored beside their base."""

from __future__ import annotations

import shutil

import pytest
import torch
from helpers.bases import TEXT, base_model, save_base, texts
from helpers.ranks import on_ranks

import pyro_ltm as ltm
from pyro_ltm.config import apply_settings, load_toml
from pyro_ltm.distributed import current
from pyro_ltm.errors import UserError
from pyro_ltm.model.grafting import digest_of
from pyro_ltm.runs import Run
from pyro_ltm.runs.base import BASE
from pyro_ltm.runs.batches import text_batches
from pyro_ltm.runs.graft import Graft, graft
from pyro_ltm.runs.metrics import read_metrics
from pyro_ltm.runs.protocols import evaluate_protocols
from pyro_ltm.runs.twin import base_of, check_twin

transformers = pytest.importorskip("transformers", reason="the extra graft is not installed")

TINY = [
    *("data.sequence_length=12", "data.packing=document", "fast.steps=2", "slow.steps=4", "slow.batch_size=2"),
    *("slow.eval_every=0", "slow.eval_sequences=2", "slow.warmup=1", "slow.lr=0.05", "slow.save_every=2"),
    "optimizer.lr=0.3",
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("models") / "gpt2")


@pytest.fixture(scope="module")
def data(tmp_path_factory, base):
    """Prepared by the base's own tokenizer, which its folder names."""
    place = tmp_path_factory.mktemp("data")
    (place / "texts.jsonl").write_text(texts(12), encoding="utf-8")
    how = {"packing": "document", "sequence_length": 12}
    return ltm.prepare([str(place / "texts.jsonl")], place / "tokens", tokenizer=base, **how).path


def planned(run: Run, *more: str):
    return apply_settings(run.config, [*TINY, *more])


def body(run: Run) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.model.decoder.body.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture(scope="module")
def grafted(base, tmp_path_factory):
    return graft(base, tmp_path_factory.mktemp("runs") / "graft", Graft(thoughts=4, max_length=16), seed=3)


@pytest.fixture(scope="module")
def trained(grafted, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "trained"
    return ltm.train(planned(grafted), data=data, out=out, init_from=grafted.folder)


def test_a_graft_writes_as_its_base_before_it_is_trained(grafted, base):
    loaded = Run.load(grafted.folder)
    config = loaded.config
    assert (config.model.layers, config.model.thoughts, config.model.max_length) == (2, 4, 16)
    assert load_toml(grafted.folder / "config.toml").graft.base == BASE
    assert config.graft.digest == digest_of(base) == digest_of(grafted.folder / BASE)
    batch = text_batches(loaded, [TEXT])[0]
    model = transformers.AutoModelForCausalLM.from_pretrained(base).eval()
    z = torch.randn(1, 4, 16)
    with torch.no_grad():
        decoder = loaded.model.decoder
        logits = decoder.logits(decoder(decoder.context(batch.inputs), z))
        assert torch.equal(logits, model(input_ids=batch.inputs, use_cache=False).logits)
    twin = base_of(loaded)
    assert check_twin(loaded, twin) == []
    nats = -torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.targets, reduction="none").sum(1)
    with torch.no_grad():
        torch.testing.assert_close(twin.model.log_prob_without_thoughts(batch), nats)


def test_trained_its_base_stays_and_lies_in_the_run(trained, grafted, base, tmp_path):
    assert same(body(trained), body(grafted))
    outputs = [each.projections.wo.weight for each in trained.model.decoder.grafts]
    assert all(bool(each.abs().max() > 0) for each in outputs)
    moved = tmp_path / "elsewhere"
    shutil.copytree(trained.folder, moved)
    loaded = Run.load(moved)
    assert loaded.fingerprint == Run.load(trained.folder).fingerprint
    assert same(loaded.model.state_dict(), trained.model.state_dict())
    (written,) = loaded.generate(prompt="The cat", num=1, max_new_tokens=4, seed=0)
    assert written.tokens <= 4
    assert loaded.reconstruct("The dog ran").tokens > 0


def test_scored_beside_its_base(trained, data):
    found = evaluate_protocols(
        trained,
        trained.dataset(),
        protocols=("bound", "prefix"),
        particles=1,
        prefixes=(4,),
        twin=base_of(trained),
        sequences=2,
    )
    assert "has learned nothing from these texts" in found.twin_differs[0]
    assert found.below_twin.keys() >= {"bound", "after 4 tokens"}


@pytest.mark.parametrize("train", ["lora", "all"])
def test_a_base_that_learns_and_a_run_that_was_killed(train, base, grafted, data, tmp_path):
    config = planned(grafted, f"graft.train={train}", "graft.rank=2", "slow_optimizer.name=muon")

    def kill(progress):
        if progress.validation is None and progress.step == 3:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        ltm.train(config, data=data, out=tmp_path / "parts", init_from=grafted.folder, on_progress=kill)
    parts = ltm.train(None, data=None, out=tmp_path / "parts", resume=True)
    whole = ltm.train(config, data=data, out=tmp_path / "whole", init_from=grafted.folder)
    assert same(body(parts), body(whole))
    loaded = Run.load(tmp_path / "parts")
    assert same(body(loaded), body(whole))
    added = {name: value for name, value in body(loaded).items() if "lora_B" in name}
    assert bool(added) == (train == "lora")
    assert all(value.any() for value in added.values()) if added else not same(body(loaded), body(grafted))
    assert same(body(base_of(loaded)), body(grafted)), "the twin is the base as it was"


def test_low_rank_additions_count_as_they_did_in_a_run_that_begins_with_them(base, data, tmp_path):
    run = graft(base, tmp_path / "graft", Graft(thoughts=2, max_length=16, train="lora"))
    with pytest.raises(UserError, match=r"its weights are of graft\.alpha = 16, and not 32"):
        ltm.train(planned(run, "graft.alpha=32"), data=data, out=tmp_path / "run", init_from=run.folder)


def test_a_fine_tuned_base_is_a_twin(base, data, trained, tmp_path):
    alone = graft(base, tmp_path / "alone", Graft(thoughts=0, train="all", max_length=16), seed=3)
    twin = ltm.train(planned(alone), data=data, out=tmp_path / "twin", init_from=alone.folder)
    assert check_twin(trained, twin) == []
    assert not same(body(twin), body(alone))


def test_a_base_by_reference(base, grafted, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(base, model)
    run = graft(model, tmp_path / "run", Graft(thoughts=2, layers="1", by_reference=True))
    assert not (run.folder / BASE).exists()
    assert Run.load(run.folder).config.graft.base == str(model)
    (model / "config.json").write_text((model / "config.json").read_text() + "\n")
    with pytest.raises(UserError, match="not those that were grafted"):
        Run.load(run.folder)
    shutil.rmtree(model)
    with pytest.raises(UserError, match="no Hugging Face model is there"):
        Run.load(run.folder)


def test_sharded_weights_are_read(tmp_path):
    folder = save_base(tmp_path / "model", "llama", max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    run = graft(folder, tmp_path / "run", Graft(thoughts=2))
    assert len(list((run.folder / BASE).glob("*.safetensors"))) == len(list(folder.glob("*.safetensors")))
    next(folder.glob("*2-of*.safetensors")).unlink()
    with pytest.raises(UserError, match="which the folder does not have"):
        graft(folder, tmp_path / "other")


def test_refused_in_a_line(base, grafted, data, tmp_path, monkeypatch):
    def refuse(expected, *, how=None, change=None):
        folder = tmp_path / "model"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(base, folder)
        if change:
            change(folder)
        with pytest.raises(UserError, match=expected):
            graft(folder, tmp_path / "run", how)
        assert not (tmp_path / "run").exists()

    def configured(**changes):
        def change(folder):
            config = transformers.AutoConfig.from_pretrained(folder).to_dict() | changes
            transformers.PreTrainedConfig(**config).save_pretrained(folder)

        return change

    refuse("multiple of the 2 grafted layers", how=Graft(thoughts=3))
    refuse("nothing is left to learn", how=Graft(thoughts=0))
    refuse("layers from 0 to 1", how=Graft(layers="7"))
    refuse("no such tokenizer", change=lambda folder: (folder / "tokenizer.json").unlink())
    refuse("has no model.safetensors", change=lambda folder: (folder / "model.safetensors").unlink())
    refuse("config.json: cannot be read: no such file", change=lambda folder: (folder / "config.json").unlink())
    refuse("a model of encoder and decoder", change=configured(is_encoder_decoder=True))
    small = base_model("gpt2", vocab_size=270)
    refuse("its tokenizer has 280 tokens, the model 270", change=small.save_pretrained)
    with pytest.raises(UserError, match="begins with 'pyro-ltm graft'"):
        ltm.train(planned(grafted), data=data, out=tmp_path / "new")
    with pytest.raises(UserError, match="frozen base learns nothing without thoughts"):
        planned(grafted, "slow.decoder_warmup=0.5")
    with pytest.raises(UserError, match="is not compiled"):
        planned(grafted, "compile=true")
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    refuse(r"pip install -e '\.\[graft\]'", how=Graft(train="lora"))
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    refuse(r"pip install -e '\.\[graft\]'")


@pytest.mark.parametrize("steps", [5, pytest.param(1000, marks=pytest.mark.long)])
def test_a_base_that_was_trained_keeps_its_logits_to_the_bit(steps, tmp_path):
    folder = save_base(tmp_path / "model")
    run = graft(folder, tmp_path / "first", Graft(thoughts=2))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([run.tokenizer.encode(TEXT)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder)
    decoder = graft(folder, tmp_path / "second", Graft(thoughts=2)).model.decoder
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
        assert torch.equal(decoder.logits(decoder(decoder.context(ids), torch.randn(1, 2, 16))), logits)


FSDP = "distributed.kind=fsdp"
SHORT = [("frozen", FSDP), ("all", FSDP)]  # each process would import what low-rank additions need: seconds
LONG = [(train, f"distributed.kind={kind}") for train in ("frozen", "lora", "all") for kind in ("ddp", "fsdp")]


def train_each(ways, starts, data, folder):
    """Rows and weights of a training of each way, by as many processes as there are."""
    found = []
    for train, kind in ways:
        out = folder / f"{train} {kind} of {current().size}"
        run = ltm.train(planned(Run.load(starts[train]), kind), data=data, out=out, init_from=starts[train])
        found.append((read_metrics(out / "metrics.jsonl"), run.trainable.state_dict()))
    return found


@pytest.mark.parametrize("ways", [SHORT, pytest.param(LONG, marks=pytest.mark.long)])
def test_two_processes_train_as_one(ways, base, data, tmp_path):
    starts = {}
    for train in dict(ways):
        starts[train] = graft(base, tmp_path / train, Graft(thoughts=4, max_length=16, train=train), seed=3).folder
    expected = train_each(ways, starts, data, tmp_path)
    for of_rank in on_ranks(2, train_each, ways, starts, data, tmp_path):
        for (rows, weights), (known, others) in zip(of_rank, expected, strict=True):
            for row, other in zip(rows, known, strict=True):
                figures = {key for key, value in row.items() if isinstance(value, float)} - {"seconds"}
                for key in figures:
                    assert row[key] == pytest.approx(other[key], rel=1e-4, abs=1e-5), (row["step"], key)
            for name, value in weights.items():
                # The softmax does not see a bias of all keys: its gradient is rounding, which Adam makes steps of.
                if not name.endswith("c_attn.bias"):
                    torch.testing.assert_close(value, others[name], rtol=1e-4, atol=1e-4, msg=name)
