"""Few-shot arithmetic: reading answers, pass@k, and a model that knows the answer."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from helpers.tiny import tiny_config, tiny_model

from pyro_ltm.config import Config
from pyro_ltm.errors import UserError
from pyro_ltm.guides import MeanField
from pyro_ltm.inference import FastLoop
from pyro_ltm.objectives import AnalyticELBO
from pyro_ltm.runs import Run
from pyro_ltm.tasks import gsm8k
from pyro_ltm.tasks.gsm8k import (
    ArithmeticOptions,
    Problem,
    attempt,
    evaluate_arithmetic,
    extract_answer,
    pass_at_k,
    prompt_of,
    read_problems,
)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("He has 3 + 4 = 7 apples.\n#### 7", 7),
        ("#### 1,234", 1234),
        ("#### $12.50.", 12.5),
        ("#### -3", -3),
        ("#### 0.5 of them", 0.5),
        ("so it is 5, or 6.", 6),
        ("#### 8\nQuestion: what is 2 + 2?\nAnswer: #### 4", 8),
        ("no marker 3\n\nQuestion: 9", 3),
        ("#### none, but 4", 4),
        ("nothing", None),
        ("#### nothing", None),
        ("", None),
    ],
)
def test_answers_are_read(text, answer):
    assert extract_answer(text) == answer


def test_pass_at_k_counts_all_choices():
    for samples, right in itertools.product(range(1, 7), range(7)):
        if right > samples:
            continue
        marks = [True] * right + [False] * (samples - right)
        for k in range(1, samples + 1):
            chosen = list(itertools.combinations(marks, k))
            assert pass_at_k(samples, right, k) == pytest.approx(sum(map(any, chosen)) / len(chosen))


class Letters:
    """One token a character, and the end."""

    end_of_text = 0
    letters = "\n #$0123456789ABQ:aceghinorstuwx.?"

    def encode(self, text):
        return [1 + self.letters.index(letter) for letter in text]

    def decode(self, ids):
        return "".join(self.letters[i - 1] for i in ids if i)


def parrot(answer: str, length: int = 96) -> Run:
    """A run whose head always writes the next character of `answer`, whatever it has read."""
    codec = Letters()
    config = tiny_config(vocab_size=len(codec.letters) + 1, max_length=length)
    model = tiny_model(config)
    written = codec.encode(answer) + [0] * length

    class Spoken(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.count = 0

    model.decoder.spoken = Spoken()

    def prefill(tokens, thoughts):
        model.decoder.spoken.count = 0
        return torch.zeros(len(tokens), 1), None

    def step(tokens, cache):
        model.decoder.spoken.count += 1
        return torch.zeros(len(tokens), 1)

    def logits(hidden):
        scores = torch.full((*hidden.shape[:-1], config.vocab_size), -50.0)
        scores[..., written[model.decoder.spoken.count]] = 50.0
        return scores

    model.decoder.prefill, model.decoder.step, model.decoder.logits = prefill, step, logits
    loop = FastLoop(MeanField(4, 16), AnalyticELBO(), steps=0)
    return Run(Path("parrot"), Config(model=config), model, loop, codec, 0)


EXAMPLES = [Problem("1 + 1?".replace("+", "x"), "#### 2"), Problem("2 x 2?", "#### 4"), Problem("3 x 1?", "#### 3")]


@pytest.mark.parametrize(("answer", "score"), [(" #### 42", 1.0), (" #### 41", 0.0)])
def test_a_model_that_knows_the_answer(answer, score):
    run, seen = parrot(answer), []
    problems = [Problem("6 x 7?", "#### 42"), Problem("x" * 90, "#### 42")]
    found = evaluate_arithmetic(
        run, problems[:1], EXAMPLES, k=2, samples=3, shots=3, max_new_tokens=12, on_attempt=seen.append
    )
    assert found.pass_at == {"1": score, "2": score}
    assert found.too_long == 0
    assert (found.max_new_tokens, found.fast_steps) == (12, 0)
    assert 0 < found.shots_kept < 3, "three examples are longer than this model reads"
    assert seen[0].texts == [answer] * 3
    both = evaluate_arithmetic(run, problems, EXAMPLES, k=1, shots=0, max_new_tokens=12)
    assert both.too_long == 1
    assert both.pass_at["1"] == score / 2


def test_no_problem_is_its_own_example(monkeypatch):
    """Nor where a file of problems is given as that of examples: every answer stood in its prompt."""
    run, prompts = parrot(" #### 42"), []
    monkeypatch.setattr(gsm8k, "_write", lambda run, prompt, *_: prompts.append(prompt) or [" #### 42"])
    list(attempt(run, EXAMPLES, EXAMPLES, ArithmeticOptions(k=1, shots=1, max_new_tokens=12)))
    assert [prompt.count(one.question) for prompt, one in zip(prompts, EXAMPLES, strict=True)] == [1, 1, 1]
    with pytest.raises(UserError, match="there are 2 examples beside a problem itself"):
        list(attempt(run, EXAMPLES, EXAMPLES, ArithmeticOptions(k=1, shots=3, max_new_tokens=12)))


def test_the_prompt_shows_examples_in_order():
    assert prompt_of(EXAMPLES[:1], "5?") == "Question: 1 x 1?\nAnswer: #### 2\n\nQuestion: 5?\nAnswer:"


def test_problems_are_read_and_bad_lines_named(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps({"question": "1?", "answer": "#### 1"}) + "\n\n")
    assert read_problems(path) == [Problem("1?", "#### 1")]
    for line, says in (("{", ":2: expected an object"), ('{"question": "a"}', ":2: expected"), ("[]", ":2: expected")):
        path.write_text(json.dumps({"question": "1?", "answer": "#### 1"}) + "\n" + line)
        with pytest.raises(UserError, match=says):
            read_problems(path)
    path.write_text('{"question": "1?", "answer": "nothing"}')
    with pytest.raises(UserError, match="has no number"):
        read_problems(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_problems(tmp_path / "missing.jsonl")
    run = parrot("")
    for options, says in (({"shots": 9}, "there are 3 examples"), ({"max_new_tokens": 99}, "from 1 to 95")):
        with pytest.raises(UserError, match=says):
            evaluate_arithmetic(run, EXAMPLES, EXAMPLES, **{"shots": 0, "max_new_tokens": 4, **options})
    with pytest.raises(UserError, match="at least k"):
        evaluate_arithmetic(run, EXAMPLES, EXAMPLES, k=5, samples=2)
