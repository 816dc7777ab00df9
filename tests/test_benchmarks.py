"""The yardsticks measure what they say, and the tables are those of the committed figures."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import time
from collections import Counter

import pytest
import torch
from helpers.loops import fit_posterior
from helpers.tiny import telling_model, tiny_batch, tiny_config, tiny_model
from pyro_ltm_cli.commands.evaluate import command as evaluate
from pyro_ltm_cli.commands.train import command as train
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import __main__ as program
from benchmarks import growth, levers, levers_training, race, speed, speed_gpu, table
from benchmarks.interleave import interleaved, machine, ratio, summary
from benchmarks.levers_training import Training, together
from benchmarks.plain import Plain
from benchmarks.protocols import CORPORA
from benchmarks.roofline import Product, fast_step_products, measure, slow_step_flops
from benchmarks.speed import plain_shape
from benchmarks.tensor import tensor_fit
from examples.algorithm_1 import FastLoop, negative_elbo, train_step
from pyro_ltm.config import Component, Config, FastConfig, SlowConfig, apply_settings
from pyro_ltm.data import TokenDataset, prepare
from pyro_ltm.errors import UserError
from pyro_ltm.guides import MeanField
from pyro_ltm.inference.build import build, check_config
from pyro_ltm.model import Decoder
from pyro_ltm.noise import DrawFrom, Noise, fold
from pyro_ltm.objectives import AnalyticELBO
from pyro_ltm.presets import preset
from pyro_ltm.runs import Run
from pyro_ltm.scores import evaluate_reference
from pyro_ltm.training import Trainer


def plain_of(model):
    plain = Plain(plain_shape(model.config)).to(torch.get_default_dtype())
    plain.load_state_dict(model.decoder.state_dict())
    plain.turns = torch.complex(*model.decoder.table.double())
    return plain


def test_the_plain_bound_and_its_gradients_are_ours():
    torch.set_default_dtype(torch.float64)
    model, batch = tiny_model(), tiny_batch()
    state = {name: torch.randn(3, 4, 16).requires_grad_() for name in ("loc", "log_variance")}
    plain = plain_of(model)
    noise = Noise(batch.ids, seed=0).normal(torch.Size([3, 4, 16]), event_dims=2, dtype=torch.float64)
    theirs = negative_elbo(plain, batch.inputs, batch.targets, state["loc"], state["log_variance"], noise)
    with DrawFrom(Noise(batch.ids, seed=0)):
        ours = AnalyticELBO().differentiable_loss(model, MeanField(4, 16), batch, state)
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)
    leaves = [*state.values(), *model.parameters()]
    mine = torch.autograd.grad(ours, leaves)
    other = torch.autograd.grad(theirs, [*state.values(), *plain.parameters()])
    names = [name for name, _ in plain.named_parameters()]
    assert names == [name for name, _ in model.decoder.named_parameters()]
    torch.testing.assert_close(mine, other, atol=1e-8, rtol=1e-8)


def test_the_references_figure_is_that_of_the_plain_loop_on_one_noise():
    """`evaluate_reference` against the paper's loop written without any part of the library, from the same draws."""
    torch.set_default_dtype(torch.float64)
    model, batch = telling_model()
    found = evaluate_reference(model, [batch], fast_steps=12)
    start = MeanField(4, 16, seed=fold(0, "start"), init_loc=0.01, init_log_variance=-5.0, init_noise=0.1)
    unfitted = {"guide": start, "objective": AnalyticELBO(), "noise": "fixed", "seed": fold(0, "fit"), "steps": 0}
    posterior = fit_posterior(model, batch, **unfitted)
    loc, log_variance = posterior.state["loc"], posterior.state["log_variance"]
    noise = (posterior.sample()[0] - loc) / (0.5 * log_variance).exp()
    normals = (loc / 0.01, (log_variance + 5) / 0.1, noise)
    plain = plain_of(model)
    *q, kept = FastLoop(steps=12).fit(plain, batch.inputs, batch.targets, normals)
    assert kept is noise
    with torch.no_grad():
        theirs = negative_elbo(plain, batch.inputs, batch.targets, *q, kept)
    # Adam's eps of 1e-8 stands beside gradients of a sum here, and of a mean over 48 tokens there.
    assert found.sequence_nats.sum().item() == pytest.approx(theirs.item(), rel=1e-5)
    longer, *_ = FastLoop(steps=13).fit(plain, batch.inputs, batch.targets, normals)
    assert not torch.allclose(longer, q[0], atol=1e-2), "one step more or less would show"


def test_the_plain_loops_learn():
    torch.manual_seed(0)
    model, batch = tiny_model(), tiny_batch(8)
    plain = plain_of(model)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01)
    fast = FastLoop(steps=4, fresh=True)
    losses = [train_step(plain, optimizer, batch.inputs, batch.targets, fast) for _ in range(12)]
    assert losses[-1] < losses[0] - 0.3


def test_tensor_gives_what_pyro_gives():
    model, batch = tiny_model(), tiny_batch()
    ours = fit_posterior(model, batch, guide=MeanField(4, 16), objective=AnalyticELBO(), steps=6, seed=3).state
    torch.testing.assert_close(tensor_fit(model.decoder, batch, 6, seed=3), ours, atol=1e-6, rtol=1e-6)


def test_roofline_counts_the_products_of_a_fast_step():
    """By hand for two layers of width 4 with 6 hidden units, two heads, 2 thoughts, 3 words, 5 tokens, window 2."""
    config = tiny_config(dim=4, layers=2, heads=2, thoughts=2, vocab_size=3, hidden=6, window=2)
    flops = flops_of(fast_step_products(config, 1, 5))
    token = 2 * 5  # multiply and add, for five tokens
    for name in ("keys and values", "queries, output"):  # forward and back, two matrices, one layer
        assert flops[f"self-attention: {name}"] == token * 2 * 2 * 4 * 4
    # A layer's one thought through the output's matrix, forward and back; a token mixes what both heads make of it.
    assert flops["cross-attention: output"] == 2 * 2 * 2 * 4 * 4
    assert flops["cross-attention: mixtures"] == token * 2 * 2 * 4
    assert flops["cross-attention: mixtures, back"] == 2 * flops["cross-attention: mixtures"]
    forward_and_back = sum(flops[f"feed-forward: {name}"] for name in ("in", "in, back", "out", "out, back"))
    assert forward_and_back == token * 2 * 2 * 3 * 4 * 6
    assert flops["head"] + flops["head, back"] == token * 2 * 4 * 3
    # Five steps of a token each: the last layer at that token, the first at the one before it, too (but for the first).
    fifths = flops_of(fast_step_products(config, 1, 5, every=5))
    for name in ("self-attention: queries, output", "cross-attention: queries", "head", "head, back"):
        assert fifths[name] == flops[name]
    assert fifths["self-attention: keys and values"] == flops["self-attention: keys and values"] * 9 / 5
    for name in ("cross-attention: mixtures", "feed-forward: in", "feed-forward: out, back"):
        assert fifths[name] == flops[name] * (5 + 9) / (2 * 5)

    # A slow step: a token's weights, the 1.8 keys that it sees on average and the thought; forward, and twice back.
    layer = 5 * 4 * 4 + 3 * 4 * 6 + 2 * 1.8 * 4 + (1 + 2) * 4
    assert slow_step_flops(config, 3, 5) == round(3 * 2 * 3 * (5 * (2 * layer + 4 * 3) + 2 * 3 * 4 * 4))

    for products in ({}, {"thoughts": 4}):
        shape = tiny_config(dim=4, layers=2, heads=2, vocab_size=3, hidden=6, window=2, **({"thoughts": 2} | products))
        one, three = (flops_of(fast_step_products(shape, size, 5)) for size in (1, 3))
        assert three == {name: 3 * count for name, count in one.items()}

    # As many thoughts in a layer as a head is wide: their mixtures are projected.
    many = tiny_config(dim=4, layers=2, heads=2, thoughts=4, vocab_size=3, hidden=6, window=2)
    flops = flops_of(fast_step_products(many, 1, 5))
    assert flops["cross-attention: output"] == token * 2 * 2 * 4 * 4
    assert flops["cross-attention: mixtures"] == token * 2 * 3 * 2 * 4
    layer = 6 * 4 * 4 + 3 * 4 * 6 + 2 * (1.8 + 2) * 4
    assert slow_step_flops(many, 3, 5) == round(3 * 2 * 3 * (5 * (2 * layer + 4 * 3) + 4 * 2 * 4 * 4))


def flops_of(products):
    flops = Counter()
    for product in products:
        flops[product.name] += product.flops
    return flops


def test_roofline_takes_time_for_products():
    found = measure([Product("a", 3, 64, 32, 16), Product("b", 2, 8, 4, 8, batch=6)], repeats=2)
    assert found.flops == 2 * 3 * 64 * 32 * 16 + 2 * 2 * 6 * 8 * 4 * 8
    assert found.seconds == pytest.approx(sum(found.parts.values()))
    assert found.seconds > 0


def test_interleaved_runs_take_turns_and_real_time():
    order = []
    works = {name: lambda name=name: (order.append(name), time.sleep(0.01)) for name in ("a", "b")}
    seconds = interleaved(works, 3)
    assert order == ["a", "b"] * 4
    assert all(len(taken) == 3 and min(taken) >= 0.01 for taken in seconds.values())
    assert summary([3.0, 1.0, 2.0], per=2)["median"] == 1.0
    assert ratio([2.0, 6.0, 9.0], [1.0, 2.0, 3.0])["median"] == 3.0


def test_memory_of_a_training_step_does_not_grow_with_its_fast_steps():
    from pyro_ltm.profiling.memory import peak_memory

    model, batch = tiny_model(tiny_config(max_length=128)), tiny_batch(4, 128)

    def fit(steps):
        fit_posterior(model, batch, guide=MeanField(4, 16), objective=AnalyticELBO(), steps=steps)

    fit(1)
    few, many = (peak_memory(lambda steps=steps: fit(steps)) for steps in (2, 20))
    assert many < 1.05 * few


class Multiplications(TorchDispatchMode):
    """Counts those of matrix products and of attention, forward and back."""

    def __init__(self):
        super().__init__()
        self.total, self.seen = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._overloadpacket.__name__
        if name in ("mm", "bmm"):
            self.total += args[0].numel() * args[1].shape[-1]
        elif name.startswith("_scaled_dot_product"):
            q, k = args[0], args[1] if "backward" not in name else args[2]
            self.total += 2 * q.numel() * k.shape[-2]
        self.seen.add(name)
        return func(*args, **(kwargs or {}))


def test_nothing_is_quadratic_in_the_length():
    """Counted, not timed: multiplications of a fast step at lengths one, two and four."""
    counts = []
    for length in (256, 512, 1024):
        model = tiny_model(tiny_config(max_length=length, window=16))
        batch = tiny_batch(1, length)
        with Multiplications() as counter:
            fit_posterior(model, batch, guide=MeanField(4, 16), objective=AnalyticELBO(), steps=1)
        assert counter.seen >= {"mm", "_scaled_dot_product_flash_attention_for_cpu"}
        counts.append(counter.total)
    first, second = counts[1] - counts[0], counts[2] - counts[1]
    assert math.isclose(second, 2 * first, rel_tol=0.02)


@pytest.mark.parametrize("corpus", CORPORA)
def test_the_plans_of_the_protocols_are_runs_that_can_be_made(corpus):
    plan = CORPORA[corpus]
    options = train.make_context("train", ["--out", "run", *plan["train"]]).params
    config = apply_settings(preset(options["preset"]), [*options["settings"], "model.vocab_size=1024", "compile=false"])
    check_config(config)
    judge = evaluate.make_context("evaluate", ["run", *plan["evaluate"]]).params
    loop = [one for one in judge["settings"] if one.partition(".")[0] in ("optimizer", "fast")]
    assert list(judge["settings"]) == loop
    check_config(apply_settings(config, loop))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "speed,grwth"], "did you mean 'growth'"),
        (["--rows", "compile;natral"], "did you mean 'natural'"),
        (["--seeds", "0,x"], "whole numbers with commas"),
        (["--rounds", "0"], "no whole number above 0"),
        (["--preset", "mediun"], "did you mean 'medium'"),
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--only", "gpu-small"], "needs --device cuda"),
        (["--only", "before"], "needs another checkout"),
        (["--table", "nothing.json"], "no such file"),
        (["--oout", "here"], "unrecognized arguments"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is(arguments, message, monkeypatch):
    monkeypatch.setattr(program, "PARTS", dict.fromkeys(program.PARTS, lambda asked: pytest.fail("measured")))
    with pytest.raises(UserError, match=message) as raised:
        program.main(arguments)
    assert "\n" not in str(raised.value)


@pytest.fixture
def no_profiler(monkeypatch):
    """Half a second whenever it watches; what it sees has tests of its own."""
    sizes = itertools.count(1 << 20, 1 << 10)
    for module in (growth, speed, speed_gpu):
        monkeypatch.setattr(module, "peak_memory", lambda work, device="cpu", **_: (work(), next(sizes))[1])


def test_growth_has_its_axes_and_leaves_a_dated_note_and_plot(tmp_path, monkeypatch, capsys, no_profiler):
    small = {"length": [32, 64], "fast_steps": [1, 2], "thoughts": [2, 4], "sequences": [1, 2]}
    monkeypatch.setattr(growth, "AXES", small | {"vocabulary": [64, 128], "window": [8, 16]})
    base = {"length": 32, "fast_steps": 1, "thoughts": 2, "sequences": 1, "vocabulary": 64, "window": 8}
    monkeypatch.setattr(growth, "BASE", base)
    (tmp_path / "speed-2026-01-01.json").write_text("{}")
    program.main(["--out", str(tmp_path), "--only", "growth", "--rounds", "1", "--threads", "1"])
    *_, path = sorted(tmp_path.glob("speed-*.json"))
    found = json.loads(path.read_text())
    assert set(found["growth"]["found"]["axes"]) == set(growth.LABELS)
    assert (tmp_path / "growth.png").stat().st_size > 10_000
    note = path.with_suffix(".md").read_text()
    assert note in capsys.readouterr().out
    assert "GiB of memory" in note
    assert table.growth(found) in note
    rate, seconds = growth.predicted(found["growth"]["found"])
    assert seconds["fast_steps"][1] == pytest.approx(2 * seconds["fast_steps"][0])
    assert seconds["sequences"][0] == seconds["length"][0] == growth._flops(base) / rate


def test_all_that_is_held_is_counted():
    config = tiny_config(hidden=24)
    assert table.parameters(config) == sum(weight.numel() for weight in tiny_model(config).decoder.parameters())
    assert table.parameters(config.twin) == sum(weight.numel() for weight in Decoder(config.twin).parameters())


def tiny_preset(name):
    model = tiny_config(max_length=16)
    slow = SlowConfig(batch_size=2, lr=0.01, warmup=1)
    return Config(model=model, fast=FastConfig(steps=2), slow=slow, optimizer=Component(name="adam"))


def test_the_tables_of_a_preset(monkeypatch, no_profiler):
    monkeypatch.setattr(speed, "preset", lambda name: dataclasses.replace(tiny_preset(name), dtype="bfloat16"))
    monkeypatch.setattr(speed, "VOCABULARY", 30)
    monkeypatch.setattr(speed, "FAST_STEPS", 1)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: None)  # half a minute
    found = {"speed": {"date": "today", "machine": machine(), "found": speed.run(rounds=1)}}
    note = table.note(json.loads(json.dumps(found)), "today")
    assert "| roofline in float32 |" in note
    assert "not measured" not in note
    shares = [line for line in note.splitlines() if "| plain | half |" in line]
    assert [("with weights" in line) for line in shares] == [False, True, False, True]
    step = found["speed"]["found"]["training_step"]
    held = 12 * step["parameters"]
    whole = (step["peak_bytes"]["recompute"] + held) / (step["peak_bytes"]["plain"] + held)
    assert f"| {whole:.2f} of it |" in shares[-1]
    # One precision by itself, in which plain is too: its rows take the place of the other part's.
    alone = {"date": "today", "machine": machine(), "found": speed.run(rounds=1, dtype="float32")}
    assert set(alone["found"]["fast_step"]["seconds"]) == {"plain", "ours", "tensor", "compiled", "quarter"}
    note = table.note(json.loads(json.dumps(found | {"float32": alone})), "today")
    rows = [line for line in note.splitlines() if line.startswith("| one fast step") and "float32" in line]
    assert [line.split(" | ")[1] for line in rows] == ["plain", "plain", "roofline", "roofline"]
    assert rows[0].split(" | ")[3] == table.times(alone["found"]["fast_step"]["faster_than_plain"]["ours"])
    assert "medium in float32 alone | against plain" in note


def test_the_gpu_part_runs_where_there_is_none(monkeypatch, no_profiler):
    for module in (speed, speed_gpu):
        monkeypatch.setattr(module, "preset", tiny_preset)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: None)
    found = speed_gpu.run("small", rounds=1, device="cpu", vocabulary=30, square=32)
    assert found["tokens"] == 2 * 16
    assert found["peak"]["nominal"] is None
    assert found["fast"]["share_of_peak"]["ours"]["measured"] > 0
    assert table.gpu({"gpu-small": {"found": found}}).count("\n| small, ") == 6 + 4


def test_plain_in_half_precision_and_for_the_compiler(monkeypatch):
    model, batch = tiny_model(), tiny_batch()
    plain, half = plain_of(model), Plain(plain_shape(model.config), half=True)
    half.load_state_dict(plain.state_dict())
    z = torch.randn(3, 4, 16)
    torch.testing.assert_close(half(batch.inputs, z).float(), plain(batch.inputs, z), atol=0.2, rtol=0.05)
    whole = plain(batch.inputs, z)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(plain(batch.inputs, z), whole)


class Sequences:
    def __len__(self):
        return 100

    def batch(self, indices):
        return indices


def test_trainings_end_together():
    order = []

    def training(name, steps):
        config = apply_settings(preset("nano"), [f"slow.steps={steps}"])
        return Training(config, Sequences(), lambda batch, step: order.append(name))

    together(training("short", 2), training("long", 4))
    assert order == ["short", "long", "long", "short", "long", "long"]


@pytest.fixture(scope="module")
def few_words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    (folder / "words.txt").write_text(" ".join(f"{number} and {number + 1}." for number in range(400)))
    prepare([str(folder / "words.txt")], folder / "tokens", vocab_size=300, sequence_length=16)
    return folder / "tokens"


@pytest.fixture
def little_work(monkeypatch):
    monkeypatch.setattr(levers_training, "preset", tiny_preset)
    monkeypatch.setattr(levers_training, "SEQUENCES", 2)
    monkeypatch.setattr(levers_training, "FAST_STEPS", 2)


def test_levers_at_equal_time(few_words, little_work):
    default, one = levers.run(few_words, steps=2, seeds=[0], rows=["subsample 2"])
    equal = one["equal_time"]
    assert equal["steps"] == max(1, round(2 * one["default_seconds"] / one["seconds"]))
    found = {"levers": {"found": [default, one | {"equal_time": equal | {"seconds": 1.0, "default_seconds": 0.9}}]}}
    lines = table.lever_table(found).splitlines()
    assert "once, before" in lines[0]
    assert "| 1.0 | 111%, **off** |" in lines[3]
    # What goes once into the first steps leaves no trace: the default is what the trainer makes of the same settings.
    data = TokenDataset(few_words)
    config = levers_training.configure(data, 2, 0, [])
    model, training, _ = levers.ready("default", data, 2, 0)
    together(training)
    theirs = build(config)
    Trainer(Run.create(few_words.parent / "run", config, *theirs, data.tokenizer), data, None).fit()
    torch.testing.assert_close(model.state_dict(), theirs[0].state_dict(), atol=0, rtol=0)


def test_a_run_that_is_cut_short_keeps_its_rows(tmp_path, monkeypatch):
    def rows(asked):
        yield {"row": "default", "seconds": 1.0, "nats_per_token": 4.0}
        raise KeyboardInterrupt

    monkeypatch.setitem(program.PARTS, "levers", rows)
    monkeypatch.setattr(program.table, "note", lambda found, date: "")
    monkeypatch.setattr(program, "check_text", lambda folder: None)
    command = ["--only", "levers", "--threads", "1", "--out", str(tmp_path), "--data", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        program.main(command)
    (kept,) = tmp_path.glob("speed-*.json")
    found = json.loads(kept.read_text())
    assert "levers" not in found, "half a table is none"
    assert [row["row"] for row in found["levers, unfinished"]["found"]] == ["default"]
    monkeypatch.setitem(program.PARTS, "levers", lambda asked: iter([{"row": "default"}, {"row": "natural"}]))
    program.main(command)
    assert set(found := json.loads(kept.read_text())) == {"levers"}
    assert [row["row"] for row in found["levers"]["found"]] == ["default", "natural"]


def test_a_race_ends(few_words, little_work):
    found = race.run(few_words, steps=2, seed=0)
    assert set(found["racers"]) == set(race.RACERS)
    assert {len(points) for points in found["curves"].values()} == {2}
    assert "time to the same bound, nano |" in table.targets({"race": {"found": [found]}})


def test_presets_of_the_benchmark_are_those_it_names():
    model = preset("medium").model
    assert (model.dim, model.layers, model.max_length, model.window) == (512, 6, 1024, 256)
