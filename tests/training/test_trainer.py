"""The slow loop: one step is Algorithm 1, a resumed run is the same run, and what is not finite stops it in time."""

from __future__ import annotations

import functools
import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from helpers.clock import Clock
from helpers.covering import covered
from safetensors.torch import load_file

import pyro_ltm as ltm
from pyro_ltm.config import SlowConfig
from pyro_ltm.data import DataOrder, TokenDataset
from pyro_ltm.errors import UserError
from pyro_ltm.inference.build import build
from pyro_ltm.noise import DrawFrom
from pyro_ltm.runs.metrics import MetricsLog, read_metrics
from pyro_ltm.training import Stopped, Trainer, train_step
from pyro_ltm.training.schedule import learning_rate
from pyro_ltm.training.trainer import slow_optimizer
from pyro_ltm.types import Batch

TINY = [
    *("model.dim=16", "model.layers=2", "model.heads=2", "model.thoughts=2", "model.max_length=16", "model.window=4"),
    *("data.vocab_size=280", "data.sequence_length=16", "fast.steps=2", "slow.steps=6", "slow.batch_size=3"),
    *("slow.eval_every=2", "slow.eval_sequences=4", "slow.save_every=2", "slow.warmup=2"),
]


def configure(*settings):
    return ltm.apply_settings(ltm.preset("nano"), [*TINY, *settings])


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same_weights(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def slow_step(parts, batches, **changes):
    """`train_step` with two fast steps; `parts` are a model and its loop."""
    model, loop = parts
    slow = changes.pop("slow_optimizer", None) or slow_optimizer(model, loop.guide, SlowConfig())
    return train_step(model, batches, loop, slow, **{"clip": 0.0, "seed": 5} | changes)


@pytest.fixture
def parts():
    model, loop = build(configure("model.vocab_size=40", "objective.warmup=0.0"))
    return model, loop.with_steps(2)


def random_batch(size, seed=0):
    return Batch.from_tokens(torch.randint(0, 40, (size, 13), generator=torch.Generator().manual_seed(seed)))


def test_a_step_is_algorithm_1(parts):
    """The slow gradient is that of -bound / tokens at thoughts drawn after the fit, and of nothing else."""
    batch = random_batch(3)
    model, loop = parts
    posterior = loop.fit(model, batch, seed=5)
    with DrawFrom(posterior.noise):
        loss = loop.objective.differentiable_loss(model, loop.guide, batch, posterior.state) / batch.tokens()
    expected = torch.autograd.grad(loss, list(parts[0].parameters()))
    report = slow_step(parts, [batch])
    for parameter, gradient in zip(parts[0].parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-8)  # the order of a few float32 sums
    torch.testing.assert_close(report.bound, loss.detach())
    assert torch.allclose(report.bound * report.tokens, report.distortion * report.tokens + report.rate * 3)


def test_accumulation_changes_nothing(parts):
    """Micro-batches of unlike sizes and masks give the gradient of the whole batch."""
    parts[0].double()
    torch.set_default_dtype(torch.float64)
    batch = random_batch(5)
    batch.mask[3, 4:] = False
    slow_step(parts, [batch], slow_optimizer=still(parts))
    whole = [parameter.grad.clone() for parameter in parts[0].parameters()]
    pieces = [batch.select(torch.arange(0, 2)), batch.select(torch.arange(2, 5))]
    slow_step(parts, pieces, slow_optimizer=still(parts))
    for parameter, gradient in zip(parts[0].parameters(), whole, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-14)  # double precision, sums reordered


def still(parts):
    """An optimizer that does not move, so that two steps see the same weights."""
    return torch.optim.SGD(parts[0].parameters(), lr=0.0)


def test_clipping_scales_the_step(parts):
    free = slow_step(parts, [random_batch(3)], slow_optimizer=still(parts))
    norm = float(free.grad_norm)
    slow_step(parts, [random_batch(3)], slow_optimizer=still(parts), clip=norm / 4)
    clipped = torch.stack([p.grad.norm() for p in parts[0].parameters()]).norm()
    assert float(clipped) == pytest.approx(norm / 4, rel=1e-4)  # torch divides by the norm plus 1e-6


def test_vectors_do_not_decay(parts):
    groups = slow_optimizer(parts[0], parts[1].guide, SlowConfig(weight_decay=0.3)).param_groups
    assert {p.dim() for p in groups[0]["params"]} == {2}
    assert {p.dim() for p in groups[1]["params"]} == {1}
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    counted = sum(len(group["params"]) for group in groups)
    assert counted == len(list(parts[0].parameters()))


def test_learning_rate_warms_up_and_falls_along_a_cosine():
    slow = SlowConfig(steps=110, warmup=10, lr=1.0, lr_final=0.2)
    assert [learning_rate(step, slow) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert learning_rate(60, slow) == pytest.approx(0.6)
    assert learning_rate(110, slow) == pytest.approx(0.2)


WAYS = {
    "plain": [],
    "accumulated": ["slow.accumulate=2"],
    "half precision": ["dtype=bfloat16"],
    "twin": ["model.thoughts=0"],
    "decoder first": ["slow.decoder_warmup=0.5"],
}


@pytest.fixture(scope="module")
def left_alone(tokens, tmp_path_factory):
    """A run of each way that nobody stops, trained once."""
    folder = tmp_path_factory.mktemp("whole")
    return functools.cache(lambda way: ltm.train(configure(*WAYS[way]), data=tokens, out=folder / way))


@pytest.mark.parametrize(("way", "at"), covered(itertools.product(WAYS, (1, 3, 6)), times=1))
def test_stopped_and_resumed_ends_with_the_same_weights(tokens, left_alone, tmp_path, way, at):
    config, whole = configure(*WAYS[way]), left_alone(way)

    def stop(progress):
        if progress.validation is None and progress.step == at:
            trainers[0].interrupted = True

    trainers = []
    original = Trainer.__post_init__

    def remember(self):
        original(self)
        trainers.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "__post_init__", remember)
        with pytest.raises(Stopped, match=f"step {at} of 6"):  # and in the validation after it, where there is one
            ltm.train(config, data=tokens, out=tmp_path / "parts", on_progress=stop)
    resumed = ltm.train(None, data=None, out=tmp_path / "parts", resume=True)
    assert resumed.step == whole.step == 6
    assert_same_weights(whole.folder, resumed.folder)
    one, other = (read_metrics(run.folder / "metrics.jsonl") for run in (whole, resumed))
    for row in [*one, *other]:
        row.pop("seconds", None)
    assert one == other, "the metrics tell one story, too"


def test_a_checkpoint_older_than_the_metrics_cuts_them(tokens, tmp_path):
    """A kill between a row and the next checkpoint leaves rows that the resumed run will write again."""
    run = ltm.train(configure(), data=tokens, out=tmp_path / "run")
    log = MetricsLog(run.folder / "metrics.jsonl")
    before = (run.folder / "metrics.jsonl").read_text()
    log.write("train", {"step": 7, "tokens": 9, "seconds": 1.0, "skipped": 0, "bound_nats_per_token": 1.0})
    log.close()
    with open(run.folder / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "st')
    ltm.train(None, data=None, out=run.folder, resume=True)
    assert (run.folder / "metrics.jsonl").read_text() == before


def test_other_data_or_configuration_is_refused(tokens, tmp_path):
    ltm.train(configure(), data=tokens, out=tmp_path / "run")
    with pytest.raises(UserError, match=r"already holds a run.*--resume"):
        ltm.train(configure(), data=tokens, out=tmp_path / "run")
    with pytest.raises(UserError, match=r"another configuration \(slow\.lr = 0\.01 became 0\.5\)"):
        ltm.train(configure("slow.lr=0.5"), data=None, out=tmp_path / "run", resume=True)
    (tmp_path / "other.txt").write_text("Other words here, and other birds. " * 200)
    other = ltm.prepare(
        [str(tmp_path / "other.txt")],
        tmp_path / "other",
        tokenizer=TokenDataset(tokens).tokenizer,
        sequence_length=16,
    )
    with pytest.raises(UserError, match="not trained on"):
        ltm.train(None, data=other.path, out=tmp_path / "run", resume=True)


def test_what_is_not_finite_is_skipped_and_then_stops_the_run(tokens, tmp_path, monkeypatch):
    """A decoder that overflows: steps are skipped and counted, the last good checkpoint stays, a report is left."""
    config = configure("slow.steps=20", "slow.max_nonfinite=3", "slow.eval_every=0")
    import pyro_ltm.training.trainer as module

    original = module.train_step

    def poisoned(model, batches, loop, *others, **options):
        if poisoned.calls in (3, *range(5, 20)):
            original_loss = loop.objective.value
            loop.objective.value = lambda terms: original_loss(terms) * float("nan")
        poisoned.calls += 1
        return original(model, batches, loop, *others, **options)

    poisoned.calls = 0
    monkeypatch.setattr(module, "train_step", poisoned)
    with pytest.raises(UserError, match=r"3 steps in a row were not finite.*nonfinite\.json.*checkpoint is kept"):
        ltm.train(config, data=tokens, out=tmp_path / "run")
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "train"]
    assert [row["skipped"] for row in rows] == [0, 0, 0, 1, 1, 2, 3]
    report = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
    assert report["step"] == 8
    assert len(report["sequence_ids"][0]) == 3
    run = ltm.Run.load(tmp_path / "run")
    assert run.step == 2, "not 4 and not 6, which were saved while steps were being skipped"
    assert all(torch.isfinite(p).all() for p in run.model.parameters())


def test_the_run_folder_is_whole(tokens, tmp_path):
    run = ltm.train(configure(), data=tokens, out=tmp_path / "run")
    names = {path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*") if path.is_file()}
    assert names == {
        *("config.toml", "data.json", "metrics.jsonl", "model.safetensors", "tokenizer.json", "trainer.safetensors"),
        "trainer-4.safetensors",
    }
    again = ltm.Run.load(run.folder)
    assert again.config == run.config
    assert again.step == 6
    assert run.evaluate(sequences=4) == again.evaluate(sequences=4)
    rows = read_metrics(run.folder / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "validation"] == [0, 2, 4, 6]
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3, 4, 5, 6]


def test_speed_and_seconds_are_those_of_steps(tokens, tmp_path, monkeypatch):
    """By a clock that reading, steps, validations and displays move: a run counts the first two, resumed or not."""
    import pyro_ltm.training.trainer as module

    clock, shown = Clock(), []
    read, learn, validate = TokenDataset.batch, module.train_step, ltm.Run.evaluate
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=clock))
    monkeypatch.setattr(TokenDataset, "batch", lambda *a: clock.passes(0.5, read(*a)))
    monkeypatch.setattr(module, "train_step", lambda *a, **k: clock.passes(4.0, learn(*a, **k)))
    monkeypatch.setattr(ltm.Run, "evaluate", lambda *a, **k: clock.passes(64.0, validate(*a, **k)))

    def show(progress):
        clock.passes(256.0)
        if progress.validation is None:
            shown.append(progress)
            if progress.step == 2:
                raise RuntimeError("killed")

    config = configure("slow.steps=4", "slow.accumulate=2", "slow.save_every=1")
    with pytest.raises(RuntimeError, match="killed"):
        ltm.train(config, data=tokens, out=tmp_path / "run", on_progress=show)
    del shown[1:]  # the step that was not saved is taken again
    ltm.train(None, data=None, out=tmp_path / "run", resume=True, on_progress=shown.append)
    data, sequences = TokenDataset(tokens), 6
    order = DataOrder(len(data), 3, config.seed)
    counted = [
        sum(int(read(data, order.indices(sequences * step + first)).tokens()) for first in (0, 3)) for step in range(4)
    ]
    shown = [progress for progress in shown if progress.validation is None]
    assert [progress.tokens_per_second for progress in shown] == [count / (0.5 + 0.5 + 4.0) for count in counted]
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "train"]
    assert [row["seconds"] for row in rows] == [5.0, 10.0, 15.0, 20.0]
    assert [row["tokens"] for row in rows] == [sum(counted[: step + 1]) for step in range(4)]


def test_training_learns_what_counting_cannot(tokens, tmp_path):
    """On text with a plain pattern the honest validation bound falls below the unigram level."""
    config = configure("slow.steps=60", "slow.eval_every=0", "slow.batch_size=16", "slow.save_every=60")
    run = ltm.train(config, data=tokens, out=tmp_path / "run")
    rows = read_metrics(run.folder / "metrics.jsonl")
    unigram = next(row["unigram_nats_per_token"] for row in rows if row["kind"] == "start")
    first, last = (row["nats_per_token"] for row in rows if row["kind"] == "validation")
    assert last < unigram < first


def test_a_decoder_that_learns_alone_learns_what_its_twin_learns(tokens, tmp_path):
    data = TokenDataset(tokens)
    run = {}
    for name, settings in {
        "ltm": ["slow.decoder_warmup=0.5", "model.thoughts=4"],
        "twin": ["model.thoughts=0"],
    }.items():
        config = configure(*settings, "model.vocab_size=280", "slow.eval_every=0")
        run[name] = ltm.Run.create(tmp_path / name, config, *build(config), data.tokenizer)
    ours, theirs = (run[name].model for name in ("ltm", "twin"))
    theirs.decoder.load_state_dict(ours.decoder.state_dict(), strict=False)
    crossing = {name: value.clone() for name, value in ours.decoder.state_dict().items() if "cross_attention" in name}
    trainers = [Trainer(run[name], data, None) for name in ("ltm", "twin")]
    for step in range(3):
        for trainer in trainers:
            trainer._step()
        rows = [json.loads(trainer.metrics.path.read_text().splitlines()[-1]) for trainer in trainers]
        assert rows[0]["bound_nats_per_token"] == rows[1]["bound_nats_per_token"], step
        assert rows[0]["kl_nats_per_sequence"] is rows[0]["beta"] is None, "there is no q"
    state = ours.decoder.state_dict()
    for name, value in theirs.decoder.state_dict().items():
        assert torch.equal(state[name], value), name
    assert all(torch.equal(state[name], value) for name, value in crossing.items())
    # Then it is given thoughts: what reads them learns, and the KL's warm-up begins.
    trainers[0]._step()
    row = json.loads(trainers[0].metrics.path.read_text().splitlines()[-1])
    assert row["kl_nats_per_sequence"] > 0
    assert row["beta"] == 0
    for trainer in trainers:
        trainer.metrics.close()
    assert not any(torch.equal(ours.decoder.state_dict()[name], value) for name, value in crossing.items())
