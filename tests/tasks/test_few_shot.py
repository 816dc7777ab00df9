"""Scores of tasks learned in context: of one who knows all that can be known, exactly."""

from __future__ import annotations

import math

import pytest

from pyro_ltm.data.in_context import TASKS, Shot, task
from pyro_ltm.scores.continuation import Scored
from pyro_ltm.tasks.few_shot import score_lessons


class Characters:
    """One token a character, and the end."""

    end_of_text = 0

    def encode(self, text):
        return [ord(letter) for letter in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


class Oracle:
    """Answers by Bayes' rule from the shots that it can read in the prompt, whatever document they are of."""

    def __init__(self, task):
        self.task, self.names = task, set()
        self.known = {question.text: question for question in task.questions}

    def score(self, pieces):
        return [self._score(piece) for piece in pieces]

    def _score(self, piece):
        assert piece.context.tokens[0] == 0
        self.names.add(piece.context.name)
        *lines, question = Characters().decode(piece.context.tokens[1:]).split("\n")
        shots = []
        for line in lines:
            text = next(text for text in self.known if line.startswith(f"{text} "))
            shots.append(Shot(self.known[text], line[len(text) + 1 :]))
        likely = self.task.answers(shots, self.known[question])
        answer = Characters().decode(piece.continuation)[1:]
        best = max(likely, key=lambda one: likely[one])
        return Scored(math.log(likely[answer]) if answer in likely else -math.inf, answer == best)


@pytest.mark.parametrize("name", TASKS)
def test_who_knows_the_task_is_as_good_as_is_said(name):
    lessons, oracle = list(task(name).lessons(3, 150, 4)), Oracle(task(name))
    for shots in (0, 1, 4):
        found, known = score_lessons(oracle, Characters(), lessons, shots), task(name).known_after(shots)
        likely = [task(name).answers(lesson.shots[:shots], lesson.shots[shots].question) for lesson in lessons]
        each = [-math.log(its[lesson.shots[shots].answer]) for its, lesson in zip(likely, lessons, strict=True)]
        assert found.answer_nats.tolist() == pytest.approx(each, abs=1e-12)
        assert found.nats == pytest.approx(sum(each) / 150)
        for value, stderr, exact in (
            (found.exact_match, found.exact_match_stderr, known.accuracy),
            (found.choice, found.choice_stderr, known.accuracy),
            (found.nats, found.nats_stderr, known.nats),
        ):
            assert value == pytest.approx(exact, abs=4 * max(stderr, 1 / 150))
    assert len(oracle.names) == 3 * 150, "noise of its own for each document and each number of shots"


def test_errors_are_those_of_a_share():
    lessons = list(task("lookup").lessons(0, 100, 0))
    found = score_lessons(Oracle(task("lookup")), Characters(), lessons, 0)
    share = found.exact_match
    assert found.exact_match_stderr == pytest.approx(math.sqrt(share * (1 - share) / 99))
    assert found.nats == pytest.approx(math.log(10))
