"""Figures of the authors' own package for the features of `test_mauve.py`, as JSON.

pip install -e '.[mauve]' && python -m tests.tasks.mauve_figures > tests/tasks/data/mauve.json
"""

from __future__ import annotations

import json

import numpy as np


def features(shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of 200 points in 8 dimensions, the second moved along the first axis."""
    generator = np.random.default_rng(0)
    p, q = generator.normal(size=(2, 200, 8))
    q[:, 0] += shift
    return p, q


def histograms() -> list[tuple[list[float], list[float]]]:
    """Pairs of histograms: alike, unlike, with empty buckets, disjoint."""
    return [
        ([0.25, 0.25, 0.5], [0.25, 0.25, 0.5]),
        ([0.7, 0.2, 0.1], [0.1, 0.3, 0.6]),
        ([0.5, 0.5, 0.0], [0.0, 0.5, 0.5]),
        ([1.0, 0.0], [0.0, 1.0]),
    ]


def main() -> None:
    import sys

    from mauve.compute_mauve import compute_mauve

    module = sys.modules["mauve.compute_mauve"]
    area = module.compute_area_under_curve
    weights = np.linspace(1e-6, 1 - 1e-6, 25)
    exact = []
    for p, q in histograms():
        curve = module.get_divergence_curve_for_multinomials(np.array(p), np.array(q), weights, 5)
        x, y = curve.T
        first, second = np.argsort(x), np.argsort(y)
        exact.append(0.5 * (area(x[first], y[first]) + area(y[second], x[second])))
    scores = {}
    for shift in (0.0, 1.0, 2.0, 4.0):
        p, q = features(shift)
        found = [compute_mauve(p_features=p, q_features=q, seed=seed, verbose=False).mauve for seed in range(10)]
        scores[str(shift)] = [float(value) for value in found]
    print(json.dumps({"package": "mauve-text 0.4.0", "histograms": exact, "features": scores}, indent=2))


if __name__ == "__main__":
    main()
