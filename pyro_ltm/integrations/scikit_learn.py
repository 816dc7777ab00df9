"""Thoughts as a step of a scikit-learn pipeline: texts in, features out.

from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline

classifier = make_pipeline(ThoughtEmbedder("runs/first"), LogisticRegression())
print(cross_val_score(classifier, texts, labels))
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyro_ltm.errors import UserError
from pyro_ltm.runs import Run
from pyro_ltm.runs.documents import check_thinks
from pyro_ltm.runs.embedding import check_layers

try:
    from sklearn.base import BaseEstimator, TransformerMixin
except ImportError as error:
    raise UserError(
        f"scikit-learn is not installed ({error.name} is missing): pip install -e '.[scikit-learn]' in the clone"
    ) from None


class ThoughtEmbedder(TransformerMixin, BaseEstimator):
    """Makes of texts the posterior means of their thoughts, a row each (see `Run.embed`).

    It learns nothing from what it is given: `fit` checks its arguments, and a text has the same row whatever stands
    beside it, so that folds of a cross-validation are apart. Clones share the run, and each text is fitted again
    whenever it is transformed: where a pipeline is tried many times, `memory=` keeps its rows.

    Args:
        run: a run, or the folder of one, which is opened when it is first needed (and runs no code of others: a run
            with classes of someone's own is opened by `Run.load(..., allow_code=True)`).
        layers: whose thoughts, from 0; None: all.
        draw: a draw from each posterior in place of its mean.
        fast_steps: of each fit; None: as many as in training.
        batch_size: sequences at a time.
        seed: of the noise.
    """

    def __init__(
        self,
        run: Run | Path | str,
        *,
        layers: Sequence[int] | None = None,
        draw: bool = False,
        fast_steps: int | None = None,
        batch_size: int = 32,
        seed: int = 0,
    ):
        self.run = run
        self.layers = layers
        self.draw = draw
        self.fast_steps = fast_steps
        self.batch_size = batch_size
        self.seed = seed

    def fit(self, X: Iterable[str], y: Any = None) -> ThoughtEmbedder:
        """Opens the run and checks the arguments; there is nothing to learn.

        Raises:
            UserError: there is no such run, it has no thoughts, or not those layers; or `X` are no texts.
        """
        _texts(X)
        run = self._opened()
        check_thinks(run)
        check_layers(run.config.model, self.layers)
        return self

    def transform(self, X: Iterable[str]) -> npt.NDArray[np.float32]:
        """Features [len(X), P] of texts, P = thoughts of the layers times their width.

        Raises:
            UserError: as `fit`; or a text is empty.
        """
        how: dict[str, Any] = {"layers": self.layers, "draw": self.draw, "seed": self.seed}
        how |= {"fast_steps": self.fast_steps, "batch_size": self.batch_size}
        features: npt.NDArray[np.float32] = self._opened().embed(_texts(X), **how).numpy()
        return features

    def get_feature_names_out(self, input_features: Any = None) -> npt.NDArray[np.object_]:
        """`layer0_thought1_dim5` and so on: layer, thought of the layer, dimension."""
        model = self._opened().config.model
        each, chosen = model.thoughts // model.layers, check_layers(model, self.layers)
        names = [f"layer{i}_thought{j}_dim{k}" for i in chosen for j in range(each) for k in range(model.thought_width)]
        return np.array(names, dtype=object)

    def _opened(self) -> Run:
        """The run; one that was named by its folder is opened once."""
        if isinstance(self.run, Run):
            return self.run
        key, run = self.__dict__.get("_run", (None, None))
        if run is None or key != str(self.run):
            run = Run.load(self.run)
            self._run = (str(self.run), run)
        return run

    def __getstate__(self) -> dict[str, Any]:
        """The state to pickle: a run that was named by its folder is opened again where it arrives."""
        state: dict[str, Any] = dict(super().__getstate__())
        state.pop("_run", None)
        return state

    def __sklearn_clone__(self) -> ThoughtEmbedder:
        clone = type(self)(**self.get_params(deep=False))
        if "_run" in self.__dict__:
            clone._run = self._run
        return clone

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.requires_fit = False
        tags.no_validation = True
        tags.transformer_tags.preserves_dtype = []
        return tags


def _texts(X: Iterable[str]) -> list[str]:
    """The texts as a list. Raises UserError when they are none."""
    if isinstance(X, str) or not isinstance(X, Iterable) or getattr(X, "ndim", 1) != 1:
        raise UserError("expected a list of texts, such as ['A dog ran.', 'A cat slept.'], or one column of a table")
    return list(X)
