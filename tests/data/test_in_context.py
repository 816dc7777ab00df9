"""`in-context` against brute force: what is known after some shots, by all rules and all questions, one by one."""

from __future__ import annotations

import itertools
import math
import re

import pytest

from pyro_ltm.data import Reading, TokenDataset, prepare, read_source
from pyro_ltm.data.corpora import for_scoring
from pyro_ltm.data.in_context import TASKS, InContext, Question, parse, task

# Two parts, of which one has more questions; answers that tell two values apart, all, or none.
TINY = InContext(
    "tiny",
    {"sign": ("plus", "minus"), "key": ("x", "y", "z")},
    [
        Question("a", "key", ("1", "1", "2")),
        Question("b", "key", ("1", "2", "3")),
        Question("c", "key", ("4", "4", "4")),
        Question("d", "sign", ("1", "2")),
    ],
)


def answer(task, rule, question):
    return question.answers[rule[list(task.parts).index(question.part)]]


def brute_force(task, shots):
    """Accuracy and nats of who keeps every whole rule that agrees with the shots; all rules, all questions."""
    rules = list(itertools.product(*(range(len(values)) for values in task.parts.values())))
    sequences = list(itertools.product(task.questions, repeat=shots + 1))
    accuracy = nats = 0.0
    for rule, (*asked, last) in itertools.product(rules, sequences):
        seen = [answer(task, rule, question) for question in asked]
        left = [other for other in rules if [answer(task, other, question) for question in asked] == seen]
        possible = [answer(task, other, last) for other in left]
        right = possible.count(answer(task, rule, last)) / len(left)
        best = max(possible, key=possible.count)
        accuracy += best == answer(task, rule, last)
        nats -= math.log(right)
    count = len(rules) * len(sequences)
    return accuracy / count, nats / count


@pytest.mark.parametrize("shots", [0, 1, 2, 3])
def test_what_is_known_is_that_of_all_rules_and_questions(shots):
    known = TINY.known_after(shots)
    assert (known.accuracy, known.nats) == pytest.approx(brute_force(TINY, shots), abs=1e-12)


@pytest.mark.parametrize("shots", [0, 1, 2, 4, 12])
def test_closed_forms(shots):
    """A key is known once it was seen: until then each of its values is as likely."""
    for name, keys, values in (("lookup", 8, 10), ("lookup", 2, 10), ("words", 3, 3), ("words", 1, 3)):
        unseen = (1 - 1 / keys) ** shots
        known = task(name, keys).known_after(shots)
        assert known.accuracy == pytest.approx(1 - unseen + unseen / values, abs=1e-12)
        assert known.nats == pytest.approx(unseen * math.log(values), abs=1e-12)


def test_chance_of_addition_and_of_orders():
    sums = [[(a + b) % modulus for modulus in range(5, 11)] for a in range(10) for b in range(10)]
    assert task("modular").known_after(0).accuracy == pytest.approx(sum(max(map(s.count, s)) for s in sums) / 600)
    words = [(a, b, c) for a in range(8) for b in range(8) for c in range(8)]
    orders = [list(itertools.permutations(word)) for word in words]
    assert task("copy").known_after(0).accuracy == pytest.approx(sum(max(map(s.count, s)) for s in orders) / 6 / 512)


@pytest.mark.parametrize("name", TASKS)
def test_documents_keep_their_rule_and_answers_are_as_likely_as_is_said(name):
    found, shots, guessed, nats = task(name), 3, [], []
    for lesson in found.lessons(5, 400, shots):
        assert all(
            shot.answer == shot.question.answers[found.parts[shot.question.part].index(lesson.rule[shot.question.part])]
            for shot in lesson.shots
        )
        *seen, last = lesson.shots
        likely = found.answers(seen, last.question)
        assert sum(likely.values()) == pytest.approx(1)
        assert likely[last.answer] > 0
        guessed.append(max(likely.values()))
        nats.append(-math.log(likely[last.answer]))
        assert lesson.prompt(shots) == "".join(shot.text for shot in seen) + last.question.text
        assert lesson.text == f"{lesson.prompt(shots)} {last.answer}\n"
    for values, known in ((guessed, found.known_after(shots).accuracy), (nats, found.known_after(shots).nats)):
        mean = sum(values) / len(values)
        error = math.sqrt(sum((value - mean) ** 2 for value in values)) / len(values)
        assert mean == pytest.approx(known, abs=4 * error)


def test_answers_are_those_of_whole_rules():
    rules = list(itertools.product(range(2), range(3)))
    for lesson in TINY.lessons(0, 50, 3):
        *seen, last = lesson.shots
        left = [rule for rule in rules if all(answer(TINY, rule, shot.question) == shot.answer for shot in seen)]
        possible = [answer(TINY, rule, last.question) for rule in left]
        assert TINY.answers(seen, last.question) == pytest.approx(
            {one: possible.count(one) / len(left) for one in set(possible)}
        )


def test_streams():
    first = [lesson.text for lesson in task("words").lessons(0, 20, 12)]
    assert first == [lesson.text for lesson in task("words").lessons(0, 30, 12)][:20]
    assert not set(first) & {lesson.text for lesson in task("words").lessons(1, 20, 12)}
    read = list(read_source("in-context:words,documents=20"))
    assert [document.text for document in read] == first
    (rule, *_) = read_source("in-context:words", Reading(columns=("daxes", "blicks")))
    assert rule.columns == {verb: next(task("words").lessons(0, 1, 0)).rule[verb] for verb in ("daxes", "blicks")}
    assert len({document.origin for document in read}) == 20


@pytest.mark.parametrize("name", TASKS)
def test_a_document_is_a_sequence_and_answers_are_tokens_of_their_own(name, tmp_path):
    folder = prepare([f"in-context:{name},documents=300"], tmp_path / "data", sequence_length=128)
    assert folder.meta["packing"] == "document"
    data = TokenDataset(folder)
    assert data.folder.meta["splits"]["train"]["documents"] == len(data)
    tokenizer = data.tokenizer
    lesson = next(task(name).lessons(9, 1, 2))
    before, whole = tokenizer.encode(lesson.prompt(2)), tokenizer.encode(lesson.text)
    assert whole[: len(before)] == before
    assert len(whole) - len(before) == len(lesson.shots[2].answer.split()) + 1, "and the end of the line"


def test_for_scoring():
    assert for_scoring("in-context:copy,shots=3") == "in-context:copy,size=3,shots=3,documents=1000,seed=1000000"
    asked = parse(for_scoring("in-context:words,size=1,seed=7"))
    assert (asked.size, asked.shots, asked.documents, asked.seed) == (1, 12, 1000, 7)
    assert [lesson.text for lesson in asked.lessons()][:9] == [
        lesson.text for lesson in task("words", 1).lessons(7, 9, 12)
    ]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("in-context", "names no task: in-context:NAME, of modular, copy, lookup, words"),
        ("in-context:shots=3", "names no task"),
        ("in-context:loockup", r"unknown task 'loockup' \(did you mean 'lookup'\?\)"),
        ("in-context:copy,shot=3", r"unknown option 'shot' \(did you mean 'shots'\?\)"),
        ("in-context:copy,shots=-1", "shots = '-1': expected a whole number"),
        ("in-context:copy,documents=0", "documents = 0: at least 1"),
        ("in-context:copy,size=9", "in-context:copy: size = 9: from 2 to 3"),
    ],
)
def test_bad_names(refused, spec, says):
    assert re.search(says, refused(read_source, spec))
