"""`worlds` against brute force: every document of a tiny world, and every way of writing it, one by one."""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import pytest

from pyro_ltm.data import TokenDataset, Tokenizer, World, prepare, read_source
from pyro_ltm.data.folder import TokenFolder
from pyro_ltm.data.grammar import Grammar, Slot, english
from pyro_ltm.data.worlds import DEFAULTS, named, parse

# Two sentences can be written from more than one template, a word from more than one value, and one word has no factor.
TINY = Grammar(
    factors={"who": ("cat", "dog"), "mood": ("calm", "glad", "sad")},
    slots={
        "who": Slot("who", {"cat": {"cat": 0.7, "pet": 0.3}, "dog": {"dog": 0.6, "pet": 0.4}}),
        "how": Slot("mood", {"calm": {"slowly": 1.0}, "glad": {"fast": 0.5, "slowly": 0.5}, "sad": {"slowly": 1.0}}),
        "any": Slot("", {"": {"slowly": 0.25, "far": 0.75}}),
    },
    opening=("A {who} ran .",),
    middle=("It went {how} .", "It went {any} .", "The {who} slept ."),
    ending=("The {who} went {how} .", "It stopped ."),
)


def tiny(length: int = 3) -> World:
    return World(length=length, grammar=TINY)


def derivations(world: World) -> Iterator[tuple[str, dict[str, str], float]]:
    """Every way of writing every document: its text, factors, and joint probability; by the definition alone."""
    grammar = world.grammar
    names = list(grammar.factors)
    for values in itertools.product(*grammar.factors.values()):
        factors = dict(zip(names, values, strict=True))
        allowed = [grammar.templates(place, world.length) for place in range(world.length)]
        for templates in itertools.product(*allowed):
            choices = []
            for part in " ".join(templates).split():
                slot = grammar.slots.get(part.strip("{}")) if part.startswith("{") else None
                choices.append(list(slot.words[factors.get(slot.factor, "")].items()) if slot else [(part, 1.0)])
            before = 1 / world.combinations / math.prod(map(len, allowed))
            for words in itertools.product(*choices):
                text = " ".join(word for word, _ in words).replace(" .", ".")
                yield text, factors, before * math.prod(probability for _, probability in words)


@pytest.mark.parametrize("length", [2, 3])
def test_probabilities_against_brute_force(length):
    world = tiny(length)
    whole, joint = defaultdict(float), defaultdict(float)
    for text, factors, probability in derivations(world):
        whole[text] += probability
        joint[text, tuple(factors.values())] += probability
    assert math.fsum(math.exp(world.log_prob(text)) for text in whole) == pytest.approx(1, abs=1e-12)
    for text, probability in whole.items():
        assert math.exp(world.log_prob(text)) == pytest.approx(probability, rel=1e-10)
        for values in itertools.product(*TINY.factors.values()):
            given = math.exp(world.log_prob_given(text, dict(zip(TINY.factors, values, strict=True))))
            assert given / world.combinations == pytest.approx(joint[text, values], rel=1e-10, abs=1e-15)


@pytest.mark.parametrize("length", [2, 3])
def test_starts_against_brute_force(length):
    """Each start that is whole words has the probability of all documents that begin with them."""
    world = tiny(length)
    begins = defaultdict(float)
    for text, _, probability in derivations(world):
        for end in [match.start() for match in re.finditer(r"(?=[ .])", text)] + [len(text)]:
            begins[text[:end]] += probability
    for start, probability in begins.items():
        assert math.exp(world.log_prob_of_start(start)) == pytest.approx(probability, rel=1e-10)
    whole = max(begins, key=len)
    assert world.log_prob_of_start("") == pytest.approx(0.0, abs=1e-12)
    assert world.log_prob_of_start(whole) == pytest.approx(world.log_prob(whole))
    for text in (f"{whole} {whole.split()[0]}", f"{whole.split()[0]}  {whole}", "zebra"):
        assert world.log_prob_of_start(text) == -math.inf
    assert world.log_prob(whole.removesuffix(".")) == -math.inf, "begun, and no document"


@pytest.mark.parametrize("window", [1, 2, 3, 5, 8, 100])
def test_window_against_brute_force(window):
    """Counts, over all documents and places, what follows each context: the best that any predictor can do with it."""
    world = tiny()
    whole, following = defaultdict(float), defaultdict(lambda: defaultdict(float))
    for text, _, probability in derivations(world):
        whole[text] += probability

    def steps(text: str) -> Iterator[tuple[tuple[str, ...], str]]:
        words = ["<end>", *text.replace(".", " .").split(), "<end>"]
        for place in range(1, len(words)):
            yield tuple(words[max(0, place - window) : place]), words[place]

    for text, probability in whole.items():
        for context, word in steps(text):
            following[context][word] += probability
    best = {context: sum(words.values()) for context, words in following.items()}
    for text in whole:
        expected = sum(math.log(following[context][word] / best[context]) for context, word in steps(text))
        assert world.windowed_log_prob(text, window) == pytest.approx(expected, rel=1e-9)


def test_a_longer_window_predicts_better_up_to_the_entropy():
    world = World(length=6)
    texts = [story.text for story in world.stories(seed=1, count=20)]
    floor = -np.mean([world.log_prob(text) for text in texts])
    levels = [-np.mean([world.windowed_log_prob(text, window) for text in texts]) for window in (1, 8, 16, 200)]
    assert levels == sorted(levels, reverse=True)
    assert levels[-1] == pytest.approx(floor, rel=1e-9)
    assert levels[1] > floor + 1, "what a short window cannot see is worth more than a nat"


def test_stories_are_drawn_from_these_probabilities():
    """Each document's frequency, and the mean of -log p against the entropy; errors are those of the sample."""
    world, count = tiny(2), 20_000
    whole = defaultdict(float)
    for text, _, probability in derivations(world):
        whole[text] += probability
    entropy = -sum(probability * math.log(probability) for probability in whole.values())
    stories = list(world.stories(seed=3, count=count))
    nats = np.array([-math.log(whole[story.text]) for story in stories])
    assert abs(nats.mean() - entropy) < 4 * nats.std() / math.sqrt(count)
    for name, values in world.factors.items():
        shares = [sum(story.factors[name] == value for story in stories) / count for value in values]
        assert shares == pytest.approx([1 / len(values)] * len(values), abs=4 * 0.5 / math.sqrt(count))
    frequent = max(whole, key=whole.__getitem__)
    share = sum(story.text == frequent for story in stories) / count
    assert share == pytest.approx(whole[frequent], abs=4 * math.sqrt(whole[frequent] / count))


def test_a_story_is_the_same_wherever_it_is_drawn():
    world = World(length=5)
    assert list(world.stories(seed=7, count=9))[:4] == list(world.stories(seed=7, count=4))
    assert list(world.stories(seed=7, count=4)) != list(world.stories(seed=8, count=4))
    (first,) = World(length=2).stories(seed=0, count=1)
    assert first.text == "Once the stranger bought the map. In the end the sailor sold it slowly."


def test_the_posterior_knows_the_factors_of_a_long_document():
    world = World()
    for story in world.stories(seed=2, count=20):
        posterior = world.posterior(story.text)
        assert all(math.isclose(sum(values.values()), 1, rel_tol=1e-9) for values in posterior.values())
        assert posterior["plot"][story.factors["plot"]] == pytest.approx(1), "both of its ends name the plot"
    given = [world.log_prob_given(s.text, s.factors) - world.log_prob(s.text) for s in world.stories(seed=2, count=200)]
    assert 0 < np.mean(given) <= math.log(world.combinations), "information about the factors, and its ceiling"


def test_several_hundred_combinations():
    assert World().combinations == 768
    assert [World(size=size).combinations for size in (2, 3, 8)] == [2**5, 3**5, 8 * 6 * 6 * 4 * 3]
    for size in range(2, 9):
        grammar = english(size)
        for slot in grammar.slots.values():
            assert set(slot.words) == set(grammar.factors.get(slot.factor, ("",)))
            assert all(math.isclose(sum(words.values()), 1) for words in slot.words.values())


NO_DOCUMENTS = ["", "A cat ran", "A cat ran.", "A cat ran. It stopped. It stopped.", "A cow ran. It stopped."]


@pytest.mark.parametrize("text", NO_DOCUMENTS)
def test_what_a_world_cannot_write_has_no_probability(text):
    assert tiny(2).log_prob(text) == -math.inf
    assert tiny(2).windowed_log_prob(text, 100) == -math.inf


def test_text_is_written_one_way():
    assert math.isfinite(tiny(2).log_prob("A cat ran. It stopped."))
    assert tiny(2).log_prob("A cat ran.  It stopped.") == -math.inf


def test_bad_arguments(refused):
    assert "from 2 to 8" in refused(World, size=1)
    assert "at least 2 sentences" in refused(World, length=1)
    assert "one value for each of" in refused(tiny().log_prob_given, "A cat ran.", {"who": "cow", "mood": "sad"})
    assert "at least 1 word" in refused(tiny().windowed_log_prob, "A cat ran.", 0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("worlds:sise=3", "worlds:sise=3: unknown option 'sise' (did you mean 'size'?)"),
        ("worlds:size=x", "size = 'x': expected a whole number, such as size=4"),
        ("worlds:documents=0", "documents = 0: at least 1"),
        ("worlds:size=99", "size = 99: from 2 to 8"),
        ("python-docs:a=1", "the corpus python-docs has no options"),
    ],
)
def test_bad_specs(spec, message, refused):
    assert message in refused(lambda: list(read_source(spec)))


def test_specs_round_trip():
    assert parse("worlds") == DEFAULTS
    assert parse("worlds:seed=5,length=9") == DEFAULTS | {"seed": 5, "length": 9}
    assert parse(named(DEFAULTS | {"size": 3})) == DEFAULTS | {"size": 3}


def test_prepared_by_the_document_one_token_a_word(tmp_path):
    folder = prepare(["worlds:documents=300,seed=4"], tmp_path / "data", sequence_length=128)
    world, data = World.of(folder), TokenDataset(folder, "validation")
    assert world is not None
    assert (world.size, world.length) == (4, 15)
    assert folder.meta["packing"] == "document"
    assert len(data) == folder.meta["splits"]["validation"]["documents"], "no document is cut"
    batch, texts = data.batch(range(10)), {story.text for story in world.stories(seed=4, count=300)}
    for row, mask in zip(batch.targets, batch.mask, strict=True):
        text = folder.tokenizer().decode(row[mask].tolist())
        assert text in texts
        assert int(mask.sum()) == len(text.replace(".", " .").split()) + 1
        assert math.isfinite(world.log_prob(text))


def test_the_world_of_a_folder(tmp_path):
    first, second = "worlds:documents=40,length=3", "worlds:documents=30,length=3,seed=9"
    both = prepare([first], tmp_path / "both", validation_sources=[second], sequence_length=32)
    assert World.of(both) is not None
    mixed = prepare([first, "worlds:documents=9,length=4"], tmp_path / "mixed", sequence_length=32)
    assert World.of(mixed) is None, "two worlds have two floors"
    (tmp_path / "text.txt").write_text("Some text of somebody's own. " * 40)
    other = prepare([str(tmp_path / "text.txt")], tmp_path / "other", vocab_size=257, sequence_length=32)
    assert World.of(TokenFolder.open(other.path)) is None
    assert other.meta["packing"] == "contiguous"


def test_the_longest_document_fits_the_smallest_preset():
    """Its words, and the end: at most 128 tokens, so that a document is one sequence."""
    grammar, length = english(4), DEFAULTS["length"]
    places = [grammar.templates(place, length) for place in range(length)]
    longest = sum(max(len(template.split()) for template in templates) for templates in places)
    assert longest + 1 <= 128
    tokenizer = Tokenizer.train((s.text for s in World().stories(seed=0, count=500)), 2048, at_most=True)
    assert tokenizer.vocab_size < 512
