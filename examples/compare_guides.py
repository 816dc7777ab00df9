"""Compares posterior families and objectives under one decoder: the library's, and a guide and an objective made here.

    python examples/compare_guides.py [RUN] [--out FOLDER] [--steps N] [--sequences N]

Without a RUN a small model is trained first. Both classes below are all that it takes: nothing is registered, and no
file of the library changes; `ltm.train(config, guide=Isotropic)` trains with one (docs/own-guide.md). The page opens
from disk.
"""

from __future__ import annotations

import argparse
import sys

import pyro.distributions as dist
import torch

import pyro_ltm as ltm
from pyro_ltm.comparison.posteriors import compare_run
from pyro_ltm.guides import Guide
from pyro_ltm.objectives import Objective
from pyro_ltm.reports.comparison_page import write_comparison
from pyro_ltm.reports.comparison_table import findings, short_table


class Isotropic(Guide):
    """A Normal with one width for all dimensions of a thought: a mean for each, and N widths instead of N D."""

    has_analytic_kl = True

    def init(self, batch):
        mean = torch.zeros(batch.size, self.thoughts, self.dim, device=batch.device)
        return {"mean": mean, "log_width": mean[..., :1].clone()}

    def distribution(self, state):
        return dist.Normal(state["mean"], state["log_width"].exp().expand_as(state["mean"])).to_event(2)


class Thermodynamic(Objective):
    """The thermodynamic bound: log weights averaged under q, p, and steps between them (arXiv:1907.00031)."""

    fewest_particles = 2

    def value(self, terms):
        weight = self.log_weight(terms)  # [K, B]
        steps = torch.linspace(0, 1, 6, dtype=weight.dtype)[:-1, None, None]  # the left ends: a lower bound
        return (torch.softmax(steps * weight, dim=1) * weight).sum(1).mean(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", help="a run folder; default: one that is trained now, in the --out folder")
    parser.add_argument("--out", default="runs/compared")
    parser.add_argument("--steps", type=int, default=100, help="slow steps of the model that is trained now")
    parser.add_argument("--sequences", type=int, default=16, help="validation sequences that each pair is fitted to")
    options = parser.parse_args()
    if options.run:
        run = ltm.Run.load(options.run)
    else:
        config = ltm.apply_settings(ltm.preset("nano"), [f"slow.steps={options.steps}"])
        run = ltm.train(config, data="python-docs", out=f"{options.out}/run", resume=True)
    guides = ["mean-field", "low-rank:2", Isotropic]
    objectives = ["elbo", "analytic-elbo", Thermodynamic(particles=4)]
    folder = f"{options.out}/comparison"
    found = compare_run(
        run, guides=guides, objectives=objectives, sequences=options.sequences, particles=16, out=folder
    )
    columns, rows = short_table(found)
    for row in [columns, *rows]:
        print("  ".join(f"{cell:<14}" for cell in row).rstrip())
    print(*findings(found), f"Open {write_comparison(found, folder)} in a browser.", sep="\n")


if __name__ == "__main__":
    try:
        main()
    except ltm.UserError as error:
        sys.exit(f"Error: {error}")
