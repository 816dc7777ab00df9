"""Thoughts as a step of a scikit-learn pipeline."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from pyro_ltm.errors import UserError
from pyro_ltm.runs import Run

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks

from pyro_ltm.integrations.scikit_learn import ThoughtEmbedder

FOLDER = Path(__file__).parent.parent / "fixtures/release-0.1.0/run"
TEXTS = [f"{word} {end}" for word in ("kalo miter", "ter son ve") for end in ("mi", "ka", "lo")]
LABELS = [text.split()[0] for text in TEXTS]
CHECKS = (
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_tags_renamed",
    "check_get_params_invariance",
    "check_mixin_order",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_set_params",
    "check_valid_tag_types",
)
"""Those of scikit-learn's that need no numbers as input: of an estimator of texts `check_estimator` runs the second."""


@pytest.fixture(scope="module")
def run():
    return Run.load(FOLDER)


@pytest.mark.parametrize("check", CHECKS)
def test_scikit_learns_own_checks(check):
    getattr(estimator_checks, check)("ThoughtEmbedder", ThoughtEmbedder(str(FOLDER)))


def test_a_pipeline_and_its_cross_validation(run):
    embedder = ThoughtEmbedder(run, fast_steps=2)
    pipeline = make_pipeline(embedder, LogisticRegression(C=1e4, max_iter=1000))
    scores = cross_val_score(pipeline, TEXTS, LABELS, cv=2)
    assert scores.shape == (2,)
    assert (scores >= 0).all()
    assert pipeline.fit(TEXTS, LABELS).score(TEXTS, LABELS) == 1.0
    features = embedder.transform(np.array(TEXTS, dtype=object))
    assert np.array_equal(features, run.embed(TEXTS, fast_steps=2).numpy())
    names = embedder.get_feature_names_out()
    assert (len(names), names[0], names[-1]) == (64, "layer0_thought0_dim0", "layer1_thought1_dim15")
    assert embedder.set_params(layers=[1]).transform(TEXTS[:1]).shape == (1, 32)


def test_a_clone_shares_the_run_and_has_the_same_rows(run):
    one = ThoughtEmbedder(run, fast_steps=1, seed=3)
    other = clone(one)
    assert other is not one
    assert other.run is run
    assert other.get_params() == one.get_params()
    by_folder = clone(ThoughtEmbedder(FOLDER, fast_steps=1, seed=3).fit(TEXTS))
    sent = pickle.loads(pickle.dumps(by_folder))
    assert "_run" not in vars(sent)
    for embedder in (other, by_folder, sent):
        assert np.array_equal(embedder.transform(TEXTS[:2]), one.transform(TEXTS[:2]))


def test_columns_of_tables_go_in_and_tables_come_out(run):
    pandas = pytest.importorskip("pandas")
    embedder = ThoughtEmbedder(run, fast_steps=0).set_output(transform="pandas")
    table = embedder.fit_transform(pandas.Series(TEXTS))
    assert list(table.columns[:1]) == ["layer0_thought0_dim0"]
    with pytest.raises(UserError, match="one column of a table"):
        embedder.transform(pandas.DataFrame({"text": TEXTS}))


@pytest.mark.parametrize(
    ("options", "texts", "says"),
    [
        ({}, "one text", "expected a list of texts"),
        ({}, 3, "expected a list of texts"),
        ({"layers": [5]}, TEXTS, "this model has layers 0 to 1"),
        ({"run": "nowhere"}, TEXTS, "not a run folder"),
    ],
)
def test_fit_refuses_what_cannot_be_transformed(run, options, texts, says):
    with pytest.raises(UserError, match=says):
        ThoughtEmbedder(**{"run": run, **options}).fit(texts)
    with pytest.raises(UserError, match="text 1: is empty"):
        ThoughtEmbedder(run).transform(["kalo", ""])
