"""The evaluation harness as a real client: its own runs on local tasks, against direct computations."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch
from helpers.tiny import D, enlarge

from pyro_ltm.config import Config, DataConfig, FastConfig, ModelConfig
from pyro_ltm.data import Tokenizer
from pyro_ltm.errors import UserError
from pyro_ltm.inference.build import build
from pyro_ltm.integrations.harness import HarnessModel, run_harness
from pyro_ltm.noise import fold
from pyro_ltm.runs import Run
from pyro_ltm.scores.continuation import Context, Piece, Predictor

LENGTH = 24
LINES = [
    "the cat sat on the mat and the dog ran",
    "a bird sang in the tree while the cat sat",
    "the dog ran to the tree and sat there",
    "while a bird sang the dog and the cat ran",
]


def make_run(folder, thoughts):
    """A run with weights that say something, and a tokenizer of its own."""
    tokenizer = Tokenizer.train(["\n".join(LINES * 9)], 280)
    shape = {"dim": D, "layers": 2, "heads": 2, "thoughts": thoughts, "max_length": LENGTH, "window": 8}
    config = Config(
        model=ModelConfig(vocab_size=tokenizer.vocab_size, **shape),
        data=DataConfig(sequence_length=LENGTH, vocab_size=280),
        fast=FastConfig(steps=3),
    )
    model, loop = build(config)
    enlarge(model.decoder, seed=0)
    return Run.create(folder, config, model, loop, tokenizer)


@pytest.fixture(scope="module")
def ltm(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "ltm", 4)


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "twin", 0)


def write_task(folder, name, rows, **keys):
    """A task file and its data."""
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}}}
    # JSON is YAML as well.
    task = {"task": name, **data, "test_split": "test", **keys}
    (folder / f"{name}.yaml").write_text(json.dumps(task), encoding="utf-8")


def choices(folder, answers):
    questions = [" ".join(line.split()[:3]) for line in LINES]
    rows = [{"q": q, "options": ["the", "tree", "a cat"], "a": a} for q, a in zip(questions, answers, strict=True)]
    write_task(
        folder, "local-choices", rows, output_type="multiple_choice", doc_to_text="{{q}}", doc_to_target="a",
        doc_to_choice="{{options}}", metric_list=[{"metric": "acc"}],
    )  # fmt: skip
    return rows


def texts(folder, lines):
    write_task(
        folder, "local-texts", [{"text": line} for line in lines], output_type="loglikelihood_rolling", doc_to_text="",
        doc_to_target="{{text}}", metric_list=[{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    )  # fmt: skip


def answers(folder, rows, **generation):
    write_task(
        folder, "local-answers", rows, output_type="generate_until", doc_to_text="{{q}}", doc_to_target="{{a}}",
        generation_kwargs={"until": [" the"], "max_gen_toks": 6, **generation},
        metric_list=[{"metric": "exact_match"}],
    )  # fmt: skip


class Request:
    """What the harness hands over."""

    def __init__(self, *args, doc=0, task="task"):
        self.args, self.doc_id, self.task_name = args, doc, task


def direct(run, context, continuation):
    """The twin's log p(continuation | context), token by token, and whether it is greedy."""
    tokens = [run.tokenizer.end_of_text, *run.tokenizer.encode(context)]
    total, greedy = 0.0, True
    with torch.no_grad():
        for token in run.tokenizer.encode(continuation):
            decoder = run.model.decoder
            hidden = decoder(decoder.context(torch.tensor([tokens])), torch.zeros(1, 0, D))
            log_probs = decoder.logits(hidden[0, -1]).double().log_softmax(-1)
            total, greedy = total + float(log_probs[token]), greedy and int(log_probs.argmax()) == token
            tokens.append(token)
    return total, greedy


def written(run, prompt, count):
    """The twin's most likely continuation, without a cache."""
    tokens = [run.tokenizer.end_of_text, *run.tokenizer.encode(prompt)]
    start, decoder = len(tokens), run.model.decoder
    with torch.no_grad():
        for _ in range(count):
            hidden = decoder(decoder.context(torch.tensor([tokens])), torch.zeros(1, 0, D))
            tokens.append(int(decoder.logits(hidden[0, -1]).argmax()))
            if tokens[-1] == run.tokenizer.end_of_text:
                break
    return run.tokenizer.decode(tokens[start:])


def test_real_runs_of_all_three_kinds(twin, tmp_path, capsys):
    """On the twin, whose figures have a direct computation."""
    rows = choices(tmp_path, [0, 1, 2, 0])
    texts(tmp_path, LINES[:2])
    right = [written(twin, line[:9], 6).split(" the")[0] for line in LINES]
    answers(tmp_path, [{"q": line[:9], "a": a} for line, a in zip(LINES, [*right[:3], "never"], strict=True)])
    found = run_harness(HarnessModel(twin), ["local-choices", "local-texts", "local-answers"], include_path=tmp_path)
    best = [
        max(range(3), key=lambda i, row=row: direct(twin, row["q"], f" {row['options'][i]}")[0]) == row["a"]
        for row in rows
    ]
    assert found["results"]["local-choices"]["acc,none"] == sum(best) / 4
    nats = -sum(direct(twin, "", line)[0] for line in LINES[:2])
    words, size = sum(len(line.split()) for line in LINES[:2]), sum(len(line) for line in LINES[:2])
    metrics = found["results"]["local-texts"]
    assert metrics["word_perplexity,none"] == pytest.approx(math.exp(nats / words), rel=1e-4)
    assert metrics["bits_per_byte,none"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert found["results"]["local-answers"]["exact_match,none"] == 0.75
    assert found["n-samples"]["local-answers"] == {"original": 4, "effective": 4}
    assert found["config"]["particles"] == 1
    assert "pretty_env_info" not in found
    assert capsys.readouterr().out == ""


def test_a_run_with_thoughts_takes_them_from_the_context_alone(ltm, tmp_path):
    rows = choices(tmp_path, [0, 0, 1, 2])
    model = HarnessModel(ltm, particles=6, seed=3)
    found = run_harness(model, [str(tmp_path / "local-choices.yaml")], limit=3)
    end, encode = ltm.tokenizer.end_of_text, ltm.tokenizer.encode
    scores = Predictor(ltm.model, ltm.loop, particles=6, seed=3)
    right = []
    for place, row in enumerate(rows[:3]):
        name = fold("continuation", "local-choices", str(place), 0)
        context = Context((end, *encode(row["q"])), name)
        z = scores.thoughts([context])[:, 0]
        nats = []
        for option in row["options"]:
            tokens = torch.tensor([[*context.tokens, *encode(f" {option}")]]).expand(6, -1)
            with torch.no_grad():
                decoder = ltm.model.decoder
                logits = decoder.logits(decoder(decoder.context(tokens[:, :-1]), z)).double().log_softmax(-1)
            each = logits.gather(-1, tokens[:, 1:, None])[:, len(context.tokens) - 1 :, 0].sum(-1)
            nats.append(float(each.logsumexp(0)) - math.log(6))
        answered = model.loglikelihood(
            [Request(row["q"], f" {option}", doc=place, task="local-choices") for option in row["options"]]
        )
        assert [value for value, _ in answered] == pytest.approx(nats, abs=1e-4)
        right.append(nats.index(max(nats)) == row["a"])
    assert found["results"]["local-choices"]["acc,none"] == pytest.approx(sum(right) / 3)
    assert found["n-samples"]["local-choices"] == {"original": 4, "effective": 3}


def test_examples_come_before_the_question(twin, tmp_path, monkeypatch):
    rows = choices(tmp_path, [0, 1, 2, 0])
    seen = []
    monkeypatch.setattr(
        HarnessModel,
        "loglikelihood",
        lambda self, requests: [seen.append(request.args) or (0.0, False) for request in requests],
    )
    found = run_harness(HarnessModel(twin), ["local-choices"], include_path=tmp_path, num_fewshot=1)
    assert found["n-shot"] == {"local-choices": 1}
    assert len(seen) == 12
    for place, (context, _) in enumerate(seen):
        question = rows[place // 3]["q"]
        assert context.endswith(question)
        assert any(f"{row['q']} {row['options'][row['a']]}" in context[: -len(question)] for row in rows)


def test_the_harness_finds_it_by_name(twin, tmp_path):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    choices(tmp_path, [0, 1, 2, 0])
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = simple_evaluate("pyro-ltm", {"run": str(twin.folder)}, ["local-choices"], task_manager=manager)
    ours = run_harness(HarnessModel(twin), ["local-choices"], include_path=tmp_path)
    assert found["results"]["local-choices"]["acc,none"] == ours["results"]["local-choices"]["acc,none"]


@pytest.mark.parametrize("context", ["the cat sat ", "", "the cat sat on", "th"])
def test_loglikelihood_of_the_twin(twin, context):
    """Spaces at the end of a context belong to the continuation; a token never reaches from one into the other."""
    bare, rest = context.rstrip(), context[len(context.rstrip()) :]
    found = HarnessModel(twin).loglikelihood([Request(context, option) for option in ("the mat", "e cat", "")])
    for option, (nats, greedy) in zip(("the mat", "e cat", ""), found, strict=True):
        expected = direct(twin, bare, rest + option)
        assert nats == pytest.approx(expected[0], abs=1e-4)
        assert greedy == expected[1]
    best = written(twin, bare, 2)
    assert HarnessModel(twin).loglikelihood([Request(bare, best)])[0][1] == direct(twin, bare, best)[1]


def test_greedy_text_is_called_greedy(twin):
    """Wherever its text has the very tokens that were written."""
    encode, model, judged = twin.tokenizer.encode, HarnessModel(twin), 0
    prompts = [" ".join(line.split()[:count]) for line in LINES for count in range(1, 8)]
    texts = model.generate_until([Request(prompt, {"max_gen_toks": 1}) for prompt in prompts])
    for prompt, text in zip(prompts, texts, strict=True):
        if len(encode(text)) == 1 and encode(prompt + text) == [*encode(prompt), *encode(text)]:
            judged += 1
            assert model.loglikelihood([Request(prompt, text)])[0][1]
    assert judged > 5


def test_a_long_context_is_cut_from_the_left_and_counted(twin):
    model = HarnessModel(twin)
    context, continuation = " ".join(LINES), " on the mat"
    tokens = [twin.tokenizer.end_of_text, *twin.tokenizer.encode(context + continuation)]
    after = len(twin.tokenizer.encode(continuation))
    assert len(tokens) > LENGTH + 1
    kept = tuple(tokens[-LENGTH - 1 :])
    expected = Predictor(twin.model, twin.loop).score([Piece(Context(kept[:-after], 0), kept[-after:])])[0]
    found = model.loglikelihood([Request(context, continuation), Request(LINES[0][:5], continuation)])
    assert found[0][0] == pytest.approx(expected.log_likelihood, abs=1e-5)
    assert model.get_model_info()["contexts_cut"] == 1


@pytest.mark.parametrize("stride", [3, LENGTH])
def test_rolling_covers_texts_longer_than_the_model(twin, ltm, stride):
    text = " ".join(LINES)
    tokens = (twin.tokenizer.end_of_text, *twin.tokenizer.encode(text))
    total = 0.0
    for start in range(1, len(tokens), stride):
        end = min(start + stride, len(tokens))
        context = tokens[max(0, end - LENGTH - 1) : start]
        total += (
            Predictor(twin.model, twin.loop).score([Piece(Context(context, 0), tokens[start:end])])[0].log_likelihood
        )
    assert HarnessModel(twin, stride=stride).loglikelihood_rolling([Request(text)]) == [pytest.approx(total, abs=1e-3)]
    assert HarnessModel(twin).loglikelihood_rolling([Request("")]) == [0.0]
    mine = HarnessModel(ltm, stride=stride, particles=4).loglikelihood_rolling([Request(text)])[0]
    assert math.isfinite(mine)
    assert mine < 0


def test_figures_do_not_depend_on_batches_or_order(ltm):
    asked = [Request(line[:10], " the mat", doc=place) for place, line in enumerate(LINES)]
    whole = [Request(line, doc=place) for place, line in enumerate(LINES)]
    prompts = [Request(line[:9], {"do_sample": True, "max_gen_toks": 5}, doc=i) for i, line in enumerate(LINES)]
    one, many = HarnessModel(ltm, batch_size=1, particles=4), HarnessModel(ltm, batch_size=8, particles=4)
    first, second = one.loglikelihood(asked), many.loglikelihood(asked[::-1])[::-1]
    assert [nats for nats, _ in first] == pytest.approx([nats for nats, _ in second], abs=1e-3)
    assert one.loglikelihood_rolling(whole) == pytest.approx(many.loglikelihood_rolling(whole[::-1])[::-1], abs=1e-3)
    assert one.generate_until(prompts) == many.generate_until(prompts[::-1])[::-1]


def test_generation_ends_where_it_is_told_to(twin):
    whole = written(twin, "the cat", 12)
    stop = whole[4:6]

    def write(**options):
        return HarnessModel(twin).generate_until([Request("the cat", {"max_gen_toks": 12, **options})])[0]

    assert write() == whole
    assert write(until=[stop, "zzz"]) == whole[: whole.index(stop)]
    assert write(until=stop) == whole[: whole.index(stop)]
    assert write(until=[]) == whole
    assert write(temperature=0.0, do_sample=False) == whole
    assert write(temperature=5.0, do_sample=False) == whole
    short = HarnessModel(twin).generate_until([Request("the cat", {"max_new_tokens": 2})])[0]
    assert short == written(twin, "the cat", 2)


def test_a_prompt_gives_way_to_what_is_to_be_written(twin):
    """To no less than half of the model's length."""
    model = HarnessModel(twin)
    prompt = " ".join(LINES)
    tokens = [twin.tokenizer.end_of_text, *twin.tokenizer.encode(prompt)]
    decoder, text = twin.model.decoder, []
    kept = tokens[-(LENGTH + 1 - LENGTH // 2) :]
    with torch.no_grad():
        for _ in range(LENGTH // 2):
            hidden = decoder(decoder.context(torch.tensor([kept])), torch.zeros(1, 0, D))
            text.append(int(decoder.logits(hidden[0, -1]).argmax()))
            if text[-1] == tokens[0]:
                break
            kept.append(text[-1])
    assert model.generate_until([Request(prompt, {})]) == [twin.tokenizer.decode(text)]
    assert model.contexts_cut == 1


def test_repeated_requests_are_several_samples(ltm):
    request = Request("the cat", {"do_sample": True, "max_gen_toks": 8})
    first = HarnessModel(ltm).generate_until([request] * 4)
    assert len(set(first)) > 1
    assert HarnessModel(ltm).generate_until([request] * 4) == first
    assert HarnessModel(ltm, seed=1).generate_until([request] * 4) != first


@pytest.mark.parametrize(
    ("options", "says"),
    [({"num_beams": 4}, "num_beams is not known"), ({"do_sample": True, "top_p": 2.0}, "top_p = 2.0")],
)
def test_refuses_options_that_it_does_not_know(twin, options, says):
    with pytest.raises(UserError, match=says):
        HarnessModel(twin).generate_until([Request("the", options)])


@pytest.mark.parametrize("options", [{"particles": 0}, {"stride": LENGTH + 1}, {"stride": -1}, {"batch_size": 0}])
def test_refuses_numbers_out_of_range(twin, options):
    with pytest.raises(UserError, match="at least 1"):
        HarnessModel(twin, **options)


def test_progress_is_counted(ltm):
    seen = []

    def counting(name, total):
        return lambda done, nats: seen.append((name, done, total))

    model = HarnessModel(ltm, counting=counting, batch_size=2, particles=2)
    model.loglikelihood([Request(line, " x", doc=i) for i, line in enumerate(LINES[:3])])
    model.generate_until([Request("the", {"max_gen_toks": 1}, doc=place) for place in range(3)])
    assert seen[-1] == ("generate_until", 3, 3)
    assert ("loglikelihood", 3, 3) in seen


def test_answers_are_cached_as_the_harness_wants(twin, tmp_path):
    from lm_eval.api.model import CachingLM

    cached = CachingLM(HarnessModel(twin), str(tmp_path / "cache.db"))
    requests = [Request("the cat", " sat"), Request("the dog", " ran", doc=1)]
    first = cached.loglikelihood(requests)
    cached.lm.loglikelihood = None  # not asked again
    assert [tuple(answer) for answer in cached.loglikelihood(requests)] == first
    cached.dbdict.close()


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    import importlib

    monkeypatch.delitem(sys.modules, "pyro_ltm.integrations.harness")
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[harness\]'"):
        importlib.import_module("pyro_ltm.integrations.harness")


@pytest.mark.parametrize(
    ("tasks", "says"),
    [
        (["no-data"], "cannot be loaded"),
        (["nowhere.yaml"], "nowhere.yaml: no such file"),
    ],
)
def test_tasks_that_cannot_run(twin, tmp_path, tasks, says):
    choices(tmp_path, [0, 0, 0, 0])
    broken = (tmp_path / "local-choices.yaml").read_text().replace("local-choices", "no-data")
    (tmp_path / "no-data.yaml").write_text(broken, encoding="utf-8")
    with pytest.raises(UserError, match=says):
        run_harness(HarnessModel(twin), tasks, include_path=tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        run_harness(HarnessModel(twin), tasks[:1], include_path=tmp_path / "none")


@pytest.mark.long
def test_an_unknown_task_gets_a_suggestion(twin, tmp_path):
    """Long, because the harness lists thousands of its own."""
    with pytest.raises(UserError, match=r"no such task \(did you mean 'wikitext'\?\)"):
        run_harness(HarnessModel(twin), ["wikitxt"])
