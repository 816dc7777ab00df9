"""A decoder trained under each pair: the same tokens for all, bounds at equal seconds, and no step taken twice."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

import pyro_ltm as ltm
from pyro_ltm.comparison.named import OWN_WEIGHTS, guides_for, pair_config, split_names, unfit_config
from pyro_ltm.comparison.posteriors import compare_run
from pyro_ltm.comparison.result import Comparison, DecoderTraining, PairScore, Validation
from pyro_ltm.comparison.trainings import MEAN_FIELD_INSTEAD, compare_training, decoder_training
from pyro_ltm.digests import without_digest
from pyro_ltm.errors import UserError
from pyro_ltm.guides import MeanField
from pyro_ltm.inference import FAMILIES
from pyro_ltm.objectives import OBJECTIVES, AnalyticELBO
from pyro_ltm.runs import Run
from pyro_ltm.runs.metrics import MetricsLog, read_metrics

TINY = [
    *("model.dim=16", "model.layers=1", "model.heads=2", "model.thoughts=2", "model.max_length=16", "model.window=4"),
    *("data.vocab_size=280", "data.sequence_length=16", "fast.steps=2", "slow.steps=4", "slow.batch_size=3"),
    *("slow.eval_every=0", "slow.eval_sequences=4", "slow.save_every=2", "slow.warmup=0", "slow.lr=0.01"),
]
SCORED = {"sequences": 5, "particles": 3, "batch_size": 4}


def configure(*settings):
    return ltm.apply_settings(ltm.preset("nano"), [*TINY, *settings])


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "birds.txt"
    path.write_text("".join(f"The {i % 7}th bird sang {i % 11} songs to the {i % 5} trees.\n" for i in range(400)))
    return path


@pytest.fixture(scope="module")
def tokens(text):
    return ltm.prepare([str(text)], text.parent / "tokens", vocab_size=280, sequence_length=16).path


PAIRS = {"guides": ["mean-field", "delta"], "objectives": ["elbo", "map"]}


@pytest.fixture(scope="module")
def undisturbed(tokens, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared") / "c"
    return out, compare_training(configure(), data=tokens, out=out, rivals=["twin"], **PAIRS, **SCORED)


@pytest.fixture(scope="module")
def run(undisturbed):
    return Run.load(undisturbed[0] / "runs" / "mean-field--elbo")


def figures(found):
    """What must be the same whenever it is measured: all but what a clock or an allocator says."""
    rows = json.loads(json.dumps(found.to_dict()["pairs"]))
    for row in rows:
        del row["saved"]  # against the twin, which not every comparison here has
        for name in [name for name in row if name.startswith("ms_") or name.endswith(("_bytes", "_seconds"))]:
            del row[name]
        for point in [*row["curve"], *row["training"]["validation"], row["training"], row["training"]["arrival"]]:
            point.pop("ms", None)
            point.pop("seconds", None)
    return rows


def test_every_decoder_reads_the_same_tokens(undisturbed):
    out, found = undisturbed
    assert [pair.key for pair in found.pairs] == [("mean-field", "elbo", 2), ("delta", "map", 2)]
    assert {(one.guide, one.objective) for one in found.refused} == {("mean-field", "map"), ("delta", "elbo")}
    for pair in [*found.pairs, found.twin]:
        assert pair.training.steps == 4
        assert pair.training.tokens == found.twin.training.tokens > 3 * 3 * 16
        assert len(pair.training.validation) == 5  # before the first step, and after each
        assert pair.elbo is not None
        assert len(pair.nats_by_sequence) == 5
    configs = [Run.load(folder).config for folder in sorted((out / "runs").iterdir())]
    assert len(configs) == 3
    assert len({(config.seed, config.slow, config.fast.noise, config.dtype) for config in configs}) == 1
    start = [pair.training.validation[0].nats_per_token for pair in found.pairs]
    assert start[0] != pytest.approx(start[1], rel=1e-12)  # each by its own loop (that of a point is mean-field's)
    weights = [Run.load(out / "runs" / name).model for name in ("delta--map", "mean-field--elbo")]
    assert not torch.equal(*(model.decoder.tok_embeddings.weight for model in weights))


def test_decoders_are_scored_by_the_protocol_of_evaluate(undisturbed):
    """The same sequences, the same fit, other draws: within the draws' error of what `evaluate` says."""
    out, found = undisturbed
    for pair in found.pairs:
        trained = Run.load(out / "runs" / f"{pair.guide}--{pair.objective}")
        bound = trained.evaluate(sequences=5, particles=200)
        assert pair.elbo.nats_per_token == pytest.approx(bound.nats_per_token, abs=0.05)
        assert pair.distortion == pytest.approx(bound.distortion_nats_per_token, abs=0.05)
    point = found.find(("delta", "map", 2))
    assert point.note == MEAN_FIELD_INSTEAD
    assert point.rate is not None


def test_the_twin_is_a_reference_and_no_pair(undisturbed):
    _, found = undisturbed
    assert found.twin not in found.pairs
    assert found.twin.rate == 0
    assert found.twin.ess == pytest.approx(3)
    assert found.to_dict()["twin"]["guide"] == "twin"


def made_up(name, seconds, levels):
    rows = [Validation(10 * i, 100 * i, seconds * i, level, 0.1) for i, level in enumerate(levels)]
    training = DecoderTraining(steps=rows[-1].step, tokens=0, seconds=rows[-1].seconds, skipped=0, validation=rows)
    return PairScore(guide=name, objective="o", fast_steps=1, training=training)


def test_equal_seconds_on_made_up_rows():
    """The fastest takes 4 s for four validations; in that time another had two, and a third no more than its start."""
    found = Comparison("training", {})
    found.pairs = [
        made_up("fast", 1.0, [9, 8, 7, 6, 5]),
        made_up("slow", 2.0, [9, 5, 4, 3, 2]),
        made_up("slowest", 4.5, [9, 1, 1, 1, 1]),
    ]
    found.twin = made_up("twin", 0.1, [9, 8, 7, 6, 5.5])  # sets no limit
    equal = found.equal_seconds()
    assert {key[0]: (row["step"], row["nats_per_token"], row["limit_seconds"]) for key, row in equal.items()} == {
        "fast": (40, 5, 4.0),
        "slow": (20, 4, 4.0),
        "slowest": (0, 9, 4.0),
        "twin": (40, 5.5, 4.0),
    }
    assert Comparison("posteriors", {}).equal_seconds() == {}


def test_figures_of_training_are_read_from_the_metrics(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write("start", {"step": 0, "unigram_nats_per_token": 6.0})
    log.write("validation", {"step": 0, "nats_per_token": 8.0, "nats_per_token_stderr": 0.1})
    for step, level in ((1, None), (2, 4.0), (3, None), (4, 3.99)):
        log.write("train", {"step": step, "seconds": 0.5 * step, "tokens": 10 * step, "skipped": step // 3})
        if level:
            log.write("validation", {"step": step, "nats_per_token": level, "nats_per_token_stderr": 0.2})
    log.close()
    found = decoder_training(tmp_path)
    assert (found.steps, found.tokens, found.seconds, found.skipped) == (4, 40, 2.0, 1)
    rows = [(row.step, row.seconds, row.tokens, row.nats_per_token) for row in found.validation]
    assert rows == [(0, 0.0, 0, 8.0), (2, 1.0, 20, 4.0), (4, 2.0, 40, 3.99)]
    assert found.arrival == found.validation[1]


class Stop(KeyboardInterrupt):
    pass


def test_it_goes_on_where_it_stopped(undisturbed, tokens, tmp_path):
    """Stopped within the second training: the first is not touched again, and all ends as if nothing had happened."""
    out, whole = undisturbed
    seen = []

    def stop(progress):
        seen.append(progress.step if progress.validation is None else None)
        if seen.count(3) == 2:
            raise Stop

    with pytest.raises(Stop):
        compare_training(configure(), data=tokens, out=tmp_path / "c", on_progress=stop, **PAIRS, **SCORED)
    left = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert [row["guide"] for row in left["pairs"]] == ["mean-field"]
    steps = len(read_metrics(tmp_path / "c" / "runs" / "delta--map" / "metrics.jsonl"))
    assert steps > 0
    seen.clear()
    labels = []
    options = {"on_progress": lambda progress: seen.append(progress.step), "on_pair": labels.append}
    found = compare_training(configure(), data=tokens, out=tmp_path / "c", **options, **PAIRS, **SCORED)
    assert labels == ["delta × map (2/2)"]
    assert min(seen) == 3  # the last checkpoint was at step 2
    assert figures(found) == figures(whole)
    first = found.to_dict()["pairs"][0]
    assert first == left["pairs"][0] | {key: first[key] for key in ("equal_seconds", "difference_to_best")}
    for name in ("mean-field--elbo", "delta--map"):
        files = [folder / "runs" / name / "model.safetensors" for folder in (out, tmp_path / "c")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_text_is_prepared_once_for_all(text, tmp_path):
    out = tmp_path / "c"
    options = {"guides": ["mean-field"], "objectives": ["elbo"], **SCORED}
    compare_training(configure("slow.steps=1"), data=str(text), out=out, **options)
    assert (out / "data" / "meta.json").is_file()
    assert not (out / "runs" / "mean-field--elbo" / "data").exists()
    before = (out / "data" / "meta.json").stat().st_mtime_ns
    found = compare_training(configure("slow.steps=1"), data=str(text), out=out, **options | {"objectives": ["elbo:2"]})
    assert [pair.objective for pair in found.pairs] == ["elbo", "elbo:2"]
    assert (out / "data" / "meta.json").stat().st_mtime_ns == before


def test_tokens_of_another_text_are_not_taken_for_those_of_the_named_one(text, tmp_path):
    ltm.prepare([str(text)], tmp_path / "c" / "data", vocab_size=280, sequence_length=16)
    other = tmp_path / "other.txt"
    other.write_text(text.read_text())
    with pytest.raises(UserError, match=r"holds the tokens of .*birds\.txt, and not of .*other\.txt"):
        compare_training(configure(), data=str(other), out=tmp_path / "c", **PAIRS, **SCORED)


@pytest.mark.parametrize(
    ("settings", "options", "says"),
    [
        (["slow.lr=0.5"], {}, r"with slow\.lr = 0\.01 and not 0\.5"),
        (["seed=4"], {}, "with seed = 0 and not 4"),
        ([], {"particles": 9}, "with particles = 3 and not 9"),
        (["slow_optimizer.name=muon"], {}, r'with slow_optimizer = "adamw\(\)" and not "muon\(\)"'),
    ],
)
def test_it_does_not_mix_what_was_trained_differently(settings, options, says, undisturbed, tokens):
    out, _ = undisturbed
    with pytest.raises(UserError, match=says):
        compare_training(configure(*settings), data=tokens, out=out, **PAIRS, **SCORED | options)


def test_one_of_a_release_that_had_fewer_settings_is_gone_on_with(undisturbed, tokens, tmp_path):
    whole = undisturbed[1]
    out = shutil.copytree(undisturbed[0], tmp_path / "c")
    kept = without_digest(json.loads((out / "compare.json").read_text()))
    for key in ("slow_optimizer", "slow.schedule", "fast.tolerance"):
        del kept["settings"][key]
    kept["settings"]["slow.alone"] = kept["settings"].pop("slow.decoder_warmup")
    (out / "compare.json").write_text(json.dumps(kept))
    labels = []
    found = compare_training(
        configure(), data=tokens, out=out, rivals=["twin"], on_pair=labels.append, **PAIRS, **SCORED
    )
    assert not labels
    assert found.to_dict()["pairs"] == whole.to_dict()["pairs"]
    assert found.settings == whole.settings


def test_bad_input_leaves_nothing(tokens, text, tmp_path):
    out = tmp_path / "c"

    def refused(match, config=None, **options):
        with pytest.raises(UserError, match=match):
            compare_training(config or configure(), **{"data": tokens, "out": out, **PAIRS, **SCORED, **options})
        assert not out.exists()

    refused("no guide fits an objective", guides=["delta"], objectives=["elbo"])
    refused("unknown guide", guides=["dleta"])
    refused("no such file", data=str(text) + "no")
    refused("model.thoughts = 0", configure("model.thoughts=0"))
    refused("validation_fraction = 0", configure("data.validation_fraction=0.0"), data=str(text))
    refused("at most 8", configure("model.max_length=8"))
    refused("nothing to train on", data=[])
    refused("no 'twn': choose from twin, masked_diffusion", rivals=["twn"])


def test_weights_that_run_away_are_a_line_and_not_the_end(tokens, tmp_path):
    wild = configure("slow.lr=1e30", "slow.clip=0.0", "slow.weight_decay=0.0", "slow.max_nonfinite=2")
    options = {"guides": ["mean-field"], "objectives": ["elbo"], **SCORED}
    found = compare_training(wild, data=tokens, out=tmp_path / "c", **options)
    (pair,) = found.pairs
    assert pair.elbo is None
    assert pair.note.startswith("failed: ")
    assert "finite" in pair.note


def test_pairs_share_the_warm_up():
    config = configure()
    assert config.objective.options == {"warmup": 0.5}
    assert pair_config(config, "mean-field", "elbo").objective.options == {"warmup": 0.5}
    assert pair_config(config, "low-rank:3", "elbo").guide.options == {"rank": 3}
    for name, kind in OBJECTIVES.items():
        if unfit_config(pair_config(config, "mean-field", name)) == "":
            assert OBJECTIVES.build(pair_config(config, "mean-field", name).objective, layers=1).__class__ is kind


def test_names():
    assert split_names(" mean-field, delta,mean-field", FAMILIES) == ["mean-field", "delta"]
    assert split_names("all", OBJECTIVES) == list(OBJECTIVES)
    assert split_names("low-rank:2,all", FAMILIES) == ["low-rank:2", *FAMILIES]
    for text, says in (
        ("mean-feild", "did you mean 'mean-field'"),
        (" , ", "no guide named"),
        ("low-rank:two", "expected a whole number"),
        ("delta:1:2:3", "too many arguments"),
    ):
        with pytest.raises(UserError, match=says):
            split_names(text, FAMILIES)


def test_a_run_is_compared_by_names_or_objects(run, tmp_path):
    named = compare_run(run, guides=["mean-field"], objectives=["analytic-elbo"], **SCORED)
    objects = {"guides": {"mf": MeanField(2, 16)}, "objectives": {"mine": AnalyticELBO()}}
    mine = compare_run(run, **objects, out=tmp_path / "c", fast_steps=[2, 3], **SCORED)
    assert mine.pairs[0].nats_by_sequence == named.pairs[0].nats_by_sequence
    assert mine.fast_steps == [2, 3]
    assert mine.about["run"] == str(run.folder)
    bound = run.evaluate(sequences=5, particles=3)  # the run's own objective is `elbo`
    own = compare_run(run, guides=["mean-field"], objectives=["elbo"], **SCORED).pairs[0]
    assert own.elbo.nats_per_token == pytest.approx(bound.nats_per_token, rel=1e-6)
    assert own.elbo.stderr == pytest.approx(bound.nats_per_token_stderr, rel=1e-6)
    assert own.iwae.nats_per_token == pytest.approx(bound.iwae_nats_per_token, rel=1e-6)


LEARNED = [name for name, kind in FAMILIES.items() if kind.learning != "none"]


@pytest.mark.parametrize("name", LEARNED)
def test_guides_that_learn_are_trained_on_the_training_split(name, run):
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    options = {"guides": [name], "objectives": ["elbo"], **SCORED}
    found = compare_run(run, guide_steps=3, **options)
    assert found.pairs[0].guide_training_seconds > 0
    assert found.pairs[0].elbo is not None
    assert compare_run(run, guide_steps=0, **options).pairs[0].guide_training_seconds is None
    assert all(torch.equal(value, run.model.state_dict()[key]) for key, value in before.items())
    assert all(parameter.grad is None for parameter in run.model.parameters())


@pytest.mark.skipif(not LEARNED, reason="no guide learns")
def test_the_runs_own_guide_starts_from_its_own_weights(tokens, tmp_path):
    config = configure("slow.steps=2", f"guide.name={LEARNED[0]}", "objective.name=elbo")
    run = ltm.train(config, data=tokens, out=tmp_path / "run")
    named = guides_for(run, [LEARNED[0], "mean-field"])
    assert named.notes == {LEARNED[0]: OWN_WEIGHTS}
    own = run.loop.guide.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in named.guides[LEARNED[0]].state_dict().items())
    assert named.guides[LEARNED[0]] is not run.loop.guide
    found = compare_run(run, guides=[LEARNED[0]], objectives=["elbo"], guide_steps=0, **SCORED)
    assert OWN_WEIGHTS in found.pairs[0].note


def test_a_guide_that_the_decoder_is_too_large_for_is_refused_and_not_fatal(run, monkeypatch):
    class Huge(MeanField):
        def __init__(self, thoughts, dim, size: int = 9):
            raise UserError(f"guide: size = {size}: at most 8")

    monkeypatch.setitem(FAMILIES._classes, "huge", Huge)
    found = compare_run(run, guides=["huge", "mean-field"], objectives=["elbo"], **SCORED)
    assert [(one.guide, one.reason) for one in found.refused] == [("huge", "guide: size = 9: at most 8")]
    with pytest.raises(UserError, match="at most 8"):
        compare_run(run, guides=["huge:size=10"], objectives=["elbo"], **SCORED)
    config = pair_config(configure(), "huge", "elbo")
    assert unfit_config(config) == "guide: size = 9: at most 8"


def test_the_twin_has_nothing_to_fit(undisturbed):
    twin = Run.load(undisturbed[0] / "runs" / "twin")
    with pytest.raises(UserError, match="no thoughts"):
        compare_run(twin, guides=["mean-field"], objectives=["elbo"])
