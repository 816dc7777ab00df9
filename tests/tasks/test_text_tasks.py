"""Tasks: what a file of tasks may say, what is counted, and what is scored."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch

from pyro_ltm.data import Tokenizer, read_source
from pyro_ltm.errors import UserError
from pyro_ltm.scores.dependence import Blocks
from pyro_ltm.scores.estimate import Figure, perplexity
from pyro_ltm.tasks.text_tasks import DETOKENISERS, Level, Task, TextCounts, load_tasks, prepare_task

SHARED = Path(os.environ.get("PYRO_LTM_SHARED", Path(__file__).parents[3] / "shared")) / "data"


def tasks_file(folder, content):
    path = folder / "tasks.toml"
    path.write_text(content, encoding="utf-8")
    return path


def tokens_of(data):
    """Every target of a prepared folder, as text."""
    return data.tokenizer.decode([int(token) for chunk in data.target_chunks() for token in chunk])


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["some words and the ends of lines\n" * 40], 280, at_most=True)


def test_a_file_of_tasks(tmp_path):
    (tmp_path / "a.txt").write_text("one two\n", encoding="utf-8")
    (tmp_path / "sub").mkdir()
    path = tasks_file(
        tmp_path / "sub",
        '[tasks.first]\nsource = "../a.txt"\nwords = "with-line-ends"\nsequences = 4\n'
        '[tasks.second]\nsource = "python-docs"\n[tasks.third]\nsource = "worlds:size=2,seed=3"\n',
    )
    first, second, third = load_tasks(path)
    assert first == Task(name="first", source=str(tmp_path / "a.txt"), words="with-line-ends", sequences=4)
    assert second.source == "python-docs"
    assert third.source == "worlds:size=2,length=15,documents=1000,seed=3", "new documents, but for what is named"
    assert [task.name for task in load_tasks(path, ("second",))] == ["second"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "no tasks in it"),
        ("[tasks.a\n", "not a readable TOML file"),
        ("[task.a]\nsource='a.txt'\n", "unknown key task (did you mean 'tasks'?)"),
        ("[tasks.a]\nwords='whitespace'\n", "tasks.a.source is missing"),
        ("[tasks.a]\nsource='a.txt'\nsplt='x'\n", "unknown key tasks.a.splt (did you mean 'split'?)"),
        ("[tasks.a]\nsource='a.txt'\nname='x'\n", "unknown key tasks.a.name"),
        (
            "[tasks.a]\nsource='a.txt'\nwords='letters'\n",
            "tasks.a.words = 'letters': choose from whitespace, with-line-e",
        ),
        ("[tasks.a]\nsource='a.txt'\ndetokenise='wikitxt'\n", "did you mean 'wikitext'?"),
        ("[tasks.a]\nsource='a.txt'\npacking='auto'\n", "choose from contiguous, document"),
        ("[tasks.a]\nsource='a.txt'\nsequences=-1\n", "tasks.a.sequences = -1: must be at least 0"),
        ("[tasks.a]\nsource='worlds:sise=3'\n", "unknown option 'sise' (did you mean 'size'?)"),
        ("[tasks.a]\nsource=3\n", "tasks.a.source = 3: expected a word"),
        ("[tasks.a]\nsource='nowhere.txt'\n", "nowhere.txt: no such file"),
        ("tasks = 3\n", "no tasks in it"),
        ("[tasks]\na = 3\n", "tasks.a: expected a table"),
    ],
)
def test_bad_files_of_tasks(tmp_path, content, says):
    (tmp_path / "a.txt").write_text("one two\n", encoding="utf-8")
    path = tasks_file(tmp_path, content)
    with pytest.raises(UserError) as error:
        load_tasks(path)
    assert str(error.value).startswith(f"{path}: ")
    assert says in str(error.value)


def test_a_name_that_is_not_there_and_a_file_that_is_not(tmp_path):
    path = tasks_file(tmp_path, "[tasks.wikitext-2]\nsource='python-docs'\n")
    with pytest.raises(UserError, match=r"no task 'wikitxt-2' \(did you mean 'wikitext-2'\?\): it has wikitext-2"):
        load_tasks(path, ("wikitxt-2",))
    with pytest.raises(UserError, match="no such file of tasks"):
        load_tasks(tmp_path / "none.toml")


def test_the_shipped_file_is_read_as_it_stands(tmp_path):
    """But for the sources, which are the reader's."""
    content = (Path(__file__).parents[2] / "examples" / "tasks.toml").read_text(encoding="utf-8")
    (tmp_path / "a.txt").write_text("one two\n", encoding="utf-8")
    lines = ['source = "a.txt"' if line.startswith('source = ".') else line for line in content.splitlines()]
    tasks = load_tasks(tasks_file(tmp_path, "\n".join(lines)))
    assert [task.name for task in tasks] == ["wikitext-2", "wikitext-2-raw", "tinyshakespeare", "python-docs"]


@pytest.mark.parametrize(
    ("words", "text", "count"),
    [
        ("whitespace", "one  two\nthree\n", 3),
        ("with-line-ends", "one  two\nthree\n", 5),
        ("with-line-ends", "one  two\n \nthree", 6),
        ("whitespace", "naïve 語 a", 3),
    ],
)
def test_counts_are_of_the_original(tmp_path, tokenizer, words, text, count):
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    task = Task(name="a", source=str(tmp_path / "a.txt"), words=words)
    data, counts = prepare_task(task, tokenizer, 16, tmp_path / "out")
    assert counts == TextCounts(1, count, len(text.encode("utf-8")))
    assert data.sequence_length == 16
    assert tokens_of(data) == text


@pytest.mark.parametrize("end", ["\n \n", ""], ids=["lines", "one line"])
def test_long_text_stays_one_document_and_loses_nothing(tmp_path, tokenizer, end):
    """It is read in pieces, which must not show: neither in the counts nor in what is scored."""
    text = "".join(f" {place} , words of a line @-@ up ( here ) {end}" for place in range(6000)) + "to its end\n"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert sum(1 for _ in read_source(str(tmp_path / "a.txt"))) > 1
    for name in ("none", "wikitext"):
        task = Task(name="a", source=str(tmp_path / "a.txt"), words="with-line-ends", detokenise=name)
        data, counts = prepare_task(task, tokenizer, 64, tmp_path / name)
        assert counts == TextCounts(1, len(text.split()) + text.count("\n"), len(text))
        assert data.meta["splits"]["train"]["documents"] == 1
        assert tokens_of(data) == DETOKENISERS[name](text)


def test_documents_stay_apart_and_in_order(tmp_path, tokenizer):
    folder = tmp_path / "texts"
    folder.mkdir()
    long = "a line of words\n" * 20000
    rows = "".join(json.dumps({"body": text}) + "\n" for text in ("one 'two'\r\n", "three\nfour"))
    (folder / "a.jsonl").write_text(rows, encoding="utf-8")
    (tmp_path / "b.txt").write_text(long, encoding="utf-8")
    task = Task(name="a", source=str(folder), text_column="body", packing="document")
    data, counts = prepare_task(task, tokenizer, 32, tmp_path / "out")
    assert (counts.documents, counts.words) == (2, 4)
    assert data.meta["packing"] == "document"
    assert len(data) == 2
    first = data.batch([0])
    assert data.tokenizer.decode(first.targets[first.mask].tolist()) == "one 'two'\r\n"
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for name in ("1.txt", "3.txt"):
        (mixed / name).write_text(long, encoding="utf-8")
    (mixed / "2.txt").write_text("short\n", encoding="utf-8")
    data, counts = prepare_task(Task(name="m", source=str(mixed)), tokenizer, 32, tmp_path / "out2")
    assert counts.documents == 3
    assert tokens_of(data) == long + "short\n" + long


@pytest.mark.parametrize(
    ("name", "text", "plain"),
    [
        ("none", " a @-@ b \n", " a @-@ b \n"),
        ("wikitext", " \n = A b = \n \n", "\n= A b =\n\n"),
        ("wikitext", " = = A = = \n", "== A ==\n"),
        ("wikitext", " It 's 1 @,@ 000 @.@ 5 , or well @-@ known .", "It's 1,000.5, or well-known."),
        ("wikitext", ' He said " Craig " ( one ; two ) : do n\'t ! ', 'He said "Craig" (one; two): do n\'t!'),
        ("wikitext", "cost $ 5 or £ 3 , 20 % [ sic ]", "cost $5 or £3, 20% [sic]"),
        ("ptb", "they do n't pay $ N <unk> 's", "they don't pay $N <unk>'s"),
        ("ptb", "`` no , '' he said .", '"no," he said.'),
    ],
)
def test_detokenisers(name, text, plain):
    assert DETOKENISERS[name](text) == plain


def figure(nats, tokens):
    """Nats a token with an error of 0.1."""
    return Figure(
        nats_per_token=nats,
        nats_per_token_stderr=0.1,
        blocks=Blocks(8, 1, "sequences", 8),
        tokens=tokens,
        sequence_nats=torch.tensor([nats * tokens]),
        sequence_tokens=torch.tensor([tokens]),
        places=None,
    )


def test_levels_by_hand():
    level = Level.of(figure(2.0, 300), tokens=300, counts=TextCounts(1, 150, 1000))
    assert level.nats_per_word == 4.0
    assert level.word_perplexity == pytest.approx(math.exp(4))
    assert level.word_perplexity_stderr == pytest.approx(math.exp(4) * 0.2)
    assert level.bits_per_byte == pytest.approx(600 / math.log(2) / 1000)
    assert level.bits_per_byte_stderr == pytest.approx(0.1 * 300 / math.log(2) / 1000)


@pytest.mark.skipif(not (SHARED / "wikitext-2").is_dir(), reason="WikiText-2 is not on this machine")
def test_wikitext_has_the_tokens_that_are_printed_of_it(tmp_path, tokenizer):
    task = Task(name="w", source=str(SHARED / "wikitext-2" / "wiki.test.tokens"), words="with-line-ends")
    assert prepare_task(task, tokenizer, 256, tmp_path / "out")[1].words == 245_569


@pytest.mark.parametrize(
    ("nats", "expected"), [(0.0, 1.0), (math.log(30), 30.0), (230.0, 7.722e99), (231.0, math.inf), (1e4, math.inf)]
)
def test_a_perplexity_is_exact_or_infinite_and_never_cut(nats, expected):
    assert perplexity(nats) == pytest.approx(expected, rel=0.01)
    level = Level.of(figure(nats, 9), tokens=9, counts=TextCounts(1, 9, 9))
    assert level.word_perplexity == perplexity(nats)
