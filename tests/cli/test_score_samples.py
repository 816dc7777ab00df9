"""`pyro-ltm score-samples`, under a run and under a Hugging Face model."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import torch
from helpers.causal_lms import save_model
from helpers.tokenizer_kinds import kinds

from pyro_ltm.errors import UserError
from pyro_ltm.runs import Run
from pyro_ltm.tasks.prompts import cut_documents
from pyro_ltm.tasks.written_texts import RunScorer

LINES = [f"the cat sat on {n} mats while a bird sang" for n in range(12)]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    pytest.importorskip("transformers", reason="the extra scorers is not installed")
    return save_model(tmp_path_factory.mktemp("models") / "gpt2", length=64)


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES), encoding="utf-8")
    return path


def test_score_samples_of_a_run(ask, invoke, trained, twin, tmp_path):
    out = tmp_path / "texts.jsonl"
    options = ["score-samples", "--run", trained, "--num", 12, "--max-new-tokens", 8]
    found = ask(*options, "--scorer", twin, "--texts-out", out)
    assert found["generative_is_exact"]
    assert found["generative"]["meaning"].startswith("exact")
    assert found["generative"]["nats_per_token"] > 0
    assert found["metrics"]["texts"] == 12
    how = {"run": str(trained), "step": 4, "temperature": 1.0, "max_new_tokens": 8, "seed": 0, "texts": None}
    assert how.items() <= found.items()
    assert (found["scorer"], found["scorer_step"], found["fast_steps"]) == (str(twin), 4, 0)
    assert 0 < found["speed"]["tokens"] <= 12 * 8
    assert found["speed"]["tokens_per_second"] == pytest.approx(found["speed"]["tokens"] / found["speed"]["seconds"])
    again = ask("score-samples", "--texts", out, "--reference", out, "--scorer", twin)
    assert again["metrics"] == found["metrics"]
    assert again["generative"]["nats_per_token"] == pytest.approx(found["generative"]["nats_per_token"])
    under, written = again["generative"], [json.loads(line)["text"] for line in out.read_text().splitlines()]
    nats = under["nats_per_token"] * under["tokens"]
    assert under["bits_per_byte"] == pytest.approx(nats / math.log(2) / sum(len(text.encode()) for text in written))
    assert again["mauve"]["score"] > 0.7, "a set of texts against itself"
    assert "not comparable" in again["features"]
    assert "self-BLEU" in invoke(*options).stdout


def test_a_run_with_thoughts_scores_by_an_upper_bound(ask, refuse, trained, texts):
    options = ["score-samples", "--texts", texts, "--scorer", trained, "--particles", 1]
    found = ask(*options, "--reference", texts)
    for one in (found["generative"], found["reference_generative"]):
        assert one["meaning"].startswith("upper bound on nats")
    assert (found["fast_steps"], found["settings"], found["generative_is_exact"]) == (2, [], False)
    settings = ["optimizer.lr=0.1", "fast.steps=9", "fast.noise=antithetic"]
    asked = [part for setting in settings for part in ("--set", setting)]
    tight, single = ask(*options, *asked), ask(*options, *asked[:4])
    assert (tight["fast_steps"], tight["generative"]["fast_steps"], tight["settings"]) == (9, 9, settings)
    assert tight["generative"]["nats_per_token"] < found["generative"]["nats_per_token"]
    assert tight["generative"]["nats_per_token"] != single["generative"]["nats_per_token"], "the fit's noise is heard"
    refuse(*options, "--set", "slow.lr=1", says=("only the fast loop can change",))
    refuse("score-samples", "--texts", texts, "--set", "fast.steps=9", says=("--set: is of a run that scores",))


def test_no_two_texts_are_fitted_on_one_noise(trained):
    found = RunScorer(Run.load(trained), particles=1).score(["a bird"] * 33)  # more than go into a batch
    assert len(set(found.sequence_nats.tolist())) == 33


def test_long_texts_are_scored_whole(invoke, trained, twin, tmp_path):
    """In consecutive sequences, as documents that are prepared; they were cut at the model's length without a word."""
    scorer = RunScorer(Run.load(twin))
    tokenizer, longest = scorer.run.tokenizer, scorer.run.config.model.max_length
    texts = ["the cat", " ".join(LINES)]
    encoded = [[tokenizer.end_of_text, *tokenizer.encode(text), tokenizer.end_of_text] for text in texts]
    assert [len(tokens) > longest + 1 for tokens in encoded] == [False, True]
    pieces = [tokens[at : at + longest + 1] for tokens in encoded for at in range(0, len(tokens) - 1, longest)]
    found = scorer.score(texts)
    assert found.tokens == sum(len(tokens) - 1 for tokens in encoded)
    assert found.sequence_nats.tolist() == pytest.approx([exact_nats(scorer.run, piece) for piece in pieces], rel=1e-5)
    assert found.bits_per_byte == pytest.approx(
        float(found.sequence_nats.sum()) / math.log(2) / sum(len(text.encode()) for text in texts)
    )
    states = scorer.features(texts)
    assert torch.equal(states[:1], scorer.features(texts[:1]))
    assert not torch.allclose(states[1:], scorer.features([texts[1] + " while"])), "its end counts"
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    shown = invoke("score-samples", "--texts", path, "--scorer", trained, "--particles", 1).stdout
    assert f"in {len(pieces)} sequences, for some texts are longer than the scorer reads at once" in shown


def test_features_are_read(ask, refuse, tmp_path):
    texts = tmp_path / "t.jsonl"
    texts.write_text('{"text": "one two three"}\n' * 12)
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", generator.normal(size=(40, 3)))
    a, b = tmp_path / "a.npy", tmp_path / "b.npy"
    found = ask("score-samples", "--texts", texts, "--features", a, "--reference-features", b)
    assert found["features"] == "given"
    assert 0 < found["mauve"]["score"] <= 1
    refuse("score-samples", "--texts", texts, "--features", a, says="go together")
    refuse(
        "score-samples", "--texts", texts, "--features", texts, "--reference-features", b, says="not a readable .npy"
    )
    refuse("score-samples", says="either --run")


def test_a_hugging_face_model_scores(ask, invoke, gpt2, texts):
    from pyro_ltm.integrations.causal_lm import CausalLM

    found = ask("score-samples", "--texts", texts, "--reference", texts, "--scorer", gpt2)
    loaded = CausalLM.load(gpt2)
    direct = loaded.score(LINES).to_dict()
    before, after = [line[:11] for line in LINES], [line[11:] for line in LINES]
    given = loaded.score_after(before, after).sequence_nats + loaded.score(before).sequence_nats
    assert given.tolist() == pytest.approx(loaded.score(LINES).sequence_nats.tolist(), rel=1e-4)
    assert found["generative"] == {**direct, "meaning": found["generative"]["meaning"]}
    assert found["generative"]["meaning"].startswith("exact")
    assert found["fast_steps"] is None
    assert found["reference_generative"] == found["generative"]
    assert found["generative_is_exact"]
    assert found["mauve"]["score"] > 0.7, "a set of texts against itself"
    assert str(gpt2) in found["features"]
    shown = invoke("score-samples", "--texts", texts, "--scorer", gpt2).stdout
    for words in (
        "generative perplexity, exact",
        "bits a byte, exact",
        "each text after <|begin|>; 64 tokens at a time",
    ):
        assert words in shown


def test_a_hugging_face_model_scores_what_a_run_writes_and_json_stands_alone(fork, trained, gpt2):
    options = ["--run", trained, "--num", 3, "--max-new-tokens", 6, "--scorer", gpt2, "--json"]
    process = fork("score-samples", *options)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out)["generative"]["texts"] == 3
    assert err == ""


def test_bad_scorers(refuse, gpt2, texts, tmp_path, monkeypatch):
    empty = tmp_path / "empty"
    empty.mkdir()
    for scorer in (empty, tmp_path / "missing"):
        refuse("score-samples", "--texts", texts, "--scorer", scorer, says=("neither a run folder", "config.json"))
    (empty / "config.json").write_text("[]")
    refuse("score-samples", "--texts", texts, "--scorer", empty, says=("expected object, got array",))
    monkeypatch.setitem(sys.modules, "transformers", None)
    refuse("score-samples", "--texts", texts, "--scorer", gpt2, says=("pip install -e '.[scorers]'",))


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    rows = [
        {"id": f"d{n}", "prompt": " ".join(line.split()[:4]), "truth": " " + " ".join(line.split()[4:])}
        for n, line in enumerate(LINES)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_continuations_against_the_true_ones(ask, trained, twin, prompts, tmp_path):
    out = tmp_path / "written.jsonl"
    options = ["score-samples", "--run", trained, "--beside", twin, "--prompts", prompts, "--scorer", twin]
    found = ask(*options, "--max-new-tokens", 6, "--rethink", 1, "--texts-out", out)
    names = ["ltm", "ltm, rethinking 1", "twin", "truth"]
    assert list(found["sides"]) == names
    assert found["runs"]["twin"] == {"run": str(twin), "step": 4}
    assert found["scorer_is_exact"]
    assert (found["documents"], found["num"], found["rethink"], found["keep"]) == (12, 1, 1, "bound")
    for name, side in found["sides"].items():
        assert side["after_prompt"]["bits_per_byte"] > 0
        assert side["after_prompt"]["bits_per_byte_stderr"] > 0
        assert (side["mauve"] is None) == (side["speed"] is None) == (name == "truth")
        assert side["metrics"]["texts"] == 12
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["side"] for row in rows] == [name for name in names[:3] for _ in range(12)]
    assert [row["id"] for row in rows[:12]] == [f"d{n}" for n in range(12)]
    assert [("scores" in row) for row in rows[::12]] == [False, True, False]
    alone = [json.loads(line) for line in (tmp_path / "written.jsonl").read_text().splitlines()][24:]
    given = ask("generate", twin, "--prompts", prompts, "--max-new-tokens", 6)["rows"]
    assert [row["continuation"] for row in alone] == [row["continuation"] for row in given], "as `generate` writes them"


def test_bits_of_a_continuation_are_those_of_the_whole_less_those_of_its_prompt(trained, twin):
    """Exactly so under a twin; a model with thoughts predicts by its own distribution."""
    scorer = RunScorer(Run.load(twin))
    prompt, text = ["the cat", "a bird sang"], [" sat on 3 mats", " while"]
    whole = [a + b for a, b in zip(prompt, text, strict=True)]
    run = scorer.run
    nats = []
    for texts in (whole, prompt):
        encoded = [[run.tokenizer.end_of_text, *run.tokenizer.encode(one)] for one in texts]
        nats.append([exact_nats(run, tokens) for tokens in encoded])
    expected = [a - b for a, b in zip(*nats, strict=True)]
    found = scorer.score_after(prompt, text)
    assert found.sequence_nats.tolist() == pytest.approx(expected, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(sum(expected) / math.log(2) / sum(len(one) for one in text), rel=1e-5)
    assert scorer.score_after(["the cat"], [""]).tokens == 0
    bound = RunScorer(Run.load(trained), particles=2).score_after(prompt, text)
    assert bound.nats_per_token > 0


def test_a_prompt_counts_before_a_text_that_is_too_long(twin):
    """A block as long as the model left room for one token before it, and the prompt was not read."""
    scorer, text = RunScorer(Run.load(twin)), " sat on 3 mats while a bird sang" * 2
    assert len(scorer.run.tokenizer.encode(text)) > scorer.run.config.model.max_length
    found = scorer.score_after(["a mat", "the cat mat"], [text, text])
    assert found.sequence_tokens[0] == found.sequence_tokens[1]
    assert abs(float(found.sequence_nats[0] - found.sequence_nats[1])) > 1e-3


def exact_nats(run, tokens):
    """By the chain rule, one token after the other."""
    read = torch.tensor([tokens])
    with torch.no_grad():
        hidden = run.model.decoder(run.model.decoder.context(read[:, :-1]), torch.zeros(1, 0, run.model.config.dim))
        logs = run.model.decoder.logits(hidden)[0].double().log_softmax(-1)
    return -sum(float(logs[place, token]) for place, token in enumerate(tokens[1:]))


def test_documents_cut_after_some_tokens(ask, invoke, trained, twin, texts):
    options = ["score-samples", "--run", trained, "--prompts", texts, "--prompt-tokens", 8, "--max-new-tokens", 4]
    shown = invoke(*options, "--scorer", twin)
    assert shown.exit_code == 0, shown.stderr
    assert "Continuations of 12 prompts" in shown.stdout
    for name in ("MAUVE", "bits a byte", "nats a token", "distinct-3"):
        assert any(line.split("  ")[0].strip() == name for line in shown.stdout.splitlines()), "on one line, unbroken"
    assert "after its prompt, exact" in shown.stdout
    found = ask(*options, "--num", 2)
    assert found["prompt_tokens"] == 8
    assert found["sides"]["ltm"]["metrics"]["texts"] == 24
    assert found["sides"]["truth"]["after_prompt"] is None


def test_prompts_are_cut_between_characters(tmp_path):
    tokenizer = kinds()["bytes"]
    path = tmp_path / "d.jsonl"
    texts = ["Hello é world", "Hello", "你好 text"]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for cut in range(1, 6):
        prompts, short = cut_documents(str(path), tokenizer, cut)
        whole = [text for text in texts if len(tokenizer.encode(text)) > cut]
        assert {one.text + one.truth for one in prompts} <= set(whole)
        assert len(prompts) + short == 3
        assert all("\N{REPLACEMENT CHARACTER}" not in one.text + one.truth for one in prompts)
    with pytest.raises(UserError, match="none of its 3 documents has more than 99 tokens"):
        cut_documents(str(path), tokenizer, 99)


def test_bad_prompts_to_score(refuse, trained, twin, prompts, texts, tmp_path):
    options = ["score-samples", "--run", trained, "--max-new-tokens", 4]
    refuse(*options, "--prompts", prompts, "--truth-column", "answer", says=("no column 'answer'",))
    refuse(*options, "--prompts", texts, says=("no column 'truth'",))
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"prompt": "kalo", "truth": null}\n')
    refuse(*options, "--prompts", empty, says=("empty.jsonl:1: 'truth' is None",))
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"prompt": "kalo " * 40, "truth": "mi"}) + "\n")
    refuse(*options, "--prompts", long, says=("long.jsonl:1: the text has", "at most 31"))
    twins = ["score-samples", "--run", twin, "--prompts", prompts, "--rethink", 1]
    refuse(*twins, says=("nothing to fit again",))
    refuse(*options, "--prompts", prompts, "--reference", texts, says="the truths in its file", quiet=False)
    refuse(*options, "--beside", twin, says="go with --prompts", quiet=False)
    refuse("score-samples", "--texts", texts, "--prompts", prompts, says="needs --run", quiet=False)
