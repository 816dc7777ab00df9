# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exploring the variational objectives
#
# A latent-thought language model draws for each text some *thoughts* z from N(0, I), and a decoder writes the tokens x
# from them. What the thoughts of a given text are, p(z | x), cannot be computed; a *guide* q(z) is fitted in its place
# by raising an *objective*. This notebook looks at both, under one decoder;
# [the next one](training_with_objectives.ipynb) trains decoders with them.
#
# Two words recur. The **distortion** is E_q[-log p(x | z)], what the text still costs once its thoughts are known. The
# **rate** is KL(q || p), what the thoughts cost. Minus their sum is the ELBO, which is never above log p(x) in
# expectation. All figures are in **nats a text**, unless the axis says otherwise, and all scores are taken on noise
# that the fit has not seen, unless the text says otherwise.
#
# It runs in a few minutes on two cores, with `made_language.py` beside it, and downloads nothing. It needs the extra
# `notebook`: `pip install -e '.[notebook]'`. Sentences that begin with **Seen** are computed from the numbers above
# them, so they hold for your run as well.

# %%
import math
import tempfile
import time
from pathlib import Path

import graphviz
import ipywidgets as widgets
import made_language as made
import pyro
import torch
from IPython.display import SVG, display
from made_language import (
    BEST,
    WITHOUT,
    compared,
    measure,
    png,
    prepare,
    say,
    say_time,
    share_of,
    show,
    standard_error,
    table,
    train,
    write_texts,
)
from matplotlib.figure import Figure

import pyro_ltm as ltm
from pyro_ltm import FastLoop
from pyro_ltm.guides import Delta, FullRank, MeanField, Mixture
from pyro_ltm.inference.log_joint import LogJoint
from pyro_ltm.objectives import IWAE, MAP, AnalyticELBO, BetaELBO, FreeBits, MonteCarloELBO, Renyi, TargetRate
from pyro_ltm.optimizers import Adam

started = time.perf_counter()
folder = Path(tempfile.mkdtemp(prefix="pyro-ltm-notebook-"))

# %% [markdown]
# ## 0. A language whose best score is known
#
# On real text nobody knows how many nats are the right ones. So the text here is made: each text has a *subject* (one
# of 4) and a *manner* (one of 4), and consists of eight clauses "the NOUN VERB .", the noun one of the subject's six,
# the verb one of the manner's four. Subject and manner together are log 16 nats, and whoever knows them pays
# log 6 + log 4 nats a clause.
#
# The decoder's self-attention sees the current token alone (`model.window=1`). It can learn which words follow which,
# but it cannot remember what the text is about: only thoughts can tell it.

# %%
texts = write_texts(3000)
data = prepare(texts, folder)
held_out = ltm.TokenDataset(data, "validation")
print(texts[0])
print(f"the best possible, over whole texts:    {BEST:.1f} nats a text, of which subject and manner {math.log(16):.2f}")
print(f"without knowing subject and manner:     {WITHOUT:.1f} nats a text, if noun and verb are guessed anew each time")

# %% [markdown]
# ## 1. The model is a Pyro program
#
# **Look for** two sites in the plate `sequences`: `thoughts`, drawn from the prior, and `tokens`, observed. There is
# no encoder among them. `render_model` writes the graph in the DOT language, and Graphviz's program `dot` draws it.
# Where that is not installed, the cell says so and shows the DOT source.

# %%
run, seconds = train(folder, data, "main", 250)
model = run.model.requires_grad_(False)  # from here on it is held still
batch = model.precompute(held_out.batch(range(share_of(24, 6))))
print(f"{sum(p.numel() for p in model.parameters())} parameters, {run.step} slow steps, {seconds:.0f} s")
print(pyro.poutine.trace(model).get_trace(batch).format_shapes())

graph = pyro.render_model(model, model_args=(batch,), render_distributions=True)
try:
    display(SVG(graph.pipe("svg")))
except graphviz.ExecutableNotFound:
    print("Graphviz's program 'dot' is not installed here: this is what render_model would have it draw,")
    print(graph.source)

# %% [markdown]
# An arrow says that the tokens depend on the thoughts; the grey site is observed. **Seen:** the trace has batch shape
# [24] at both sites, and event shapes [N, D] and [T].

# %% [markdown]
# ## 2. One text, and its posterior under four guides
#
# The text is the one of 24 whose thoughts carry most. A thought has 32 dimensions, and the decoder reads sums of them,
# so no single one says much. The figure shows the plane that says most: its first direction points from the prior's
# mean to the mean-field mean, its second, at a right angle, towards the point that `delta` finds. The contours are the
# true posterior on a grid over this plane, **with the thirty directions at right angles to it held at zero**, where the
# mean-field mean has them: a slice, not the marginal. So it need not have the width of q, and a guide may settle beside
# the plane. Arrows follow the mean of q over the fast steps; dots are draws from the last q.
#
# **Look for** paths that leave the prior's mean (0, 0) in large steps and slow down; a `delta` that has no width; and
# whether the richer families reach a better bound than `mean-field` here.

# %%
look = FastLoop(MeanField(1, 32), AnalyticELBO(particles=4), steps=share_of(24)).fit(model, batch)
rates = look.score(model, batch).rate
index = int(rates.argmax())
one = batch.select(torch.tensor([index]))
print(held_out.tokenizer.decode(one.targets[0].tolist()))
guides = {
    "delta": (Delta(1, 32), MAP()),
    "mean-field": (MeanField(1, 32), AnalyticELBO(particles=8)),
    "full-rank": (FullRank(1, 32), AnalyticELBO(particles=8)),
    "mixture of 2": (Mixture(1, 32), MonteCarloELBO(particles=8)),
}
fitted, paths = {}, {}
for name, (guide, objective) in guides.items():
    path = paths[name] = []

    def watch(step, state, guide=guide, path=path):
        path.append(guide.distribution(state).mean.detach()[0].flatten())

    fitted[name] = FastLoop(guide, objective, steps=32).fit(model, one, watch=watch)
paths = {name: torch.stack(path) for name, path in paths.items()}

q = fitted["mean-field"].distribution
mean = q.mean.flatten()
along = mean / mean.norm()
aside = paths["delta"][-1] - (paths["delta"][-1] @ along) * along
plane = torch.stack([along, aside / aside.norm()])  # [2, 32]

SIDE = 41
reach = float(mean.norm())
across = [torch.linspace(-2, reach + 3, SIDE), torch.linspace(-3.5, 3.5, SIDE)]
points = torch.cartesian_prod(*across) @ plane
target = LogJoint(model, one)
with torch.no_grad():
    joint = torch.cat([target(part[:, None, None]) for part in points.split(256)]).view(SIDE, SIDE)
cells = (joint - joint.logsumexp((0, 1))).exp()

draws = {name: posterior.with_noise(1).sample(150)[:, 0].flatten(1) @ plane.T for name, posterior in fitted.items()}
show(made.draw_slice(across, cells, {name: path @ plane.T for name, path in paths.items()}, draws))

# %%
DRAWS = share_of(512)
rows, bounds = [], {}
for name, posterior in fitted.items():
    if not posterior.guide.has_density:
        rows.append([name, "no density", "-", "-"])
        continue
    terms = posterior.with_noise(2).score(model, one, particles=DRAWS)
    # With the KL in closed form only the distortion is sampled; without it all of log w is.
    sampled = terms.log_likelihood[:, 0] if terms.kl is not None else terms.log_weight[:, 0]
    error = standard_error(sampled)
    elbo = float(-terms.distortion - terms.rate)
    evidence = float(terms.log_weight.logsumexp(0) - math.log(DRAWS))
    bounds[name] = (elbo, error, evidence)
    rows.append([name, f"{elbo:.2f} ± {error:.2f}", f"{float(terms.rate):.2f}", f"{evidence:.2f}"])
table(["guide", "ELBO (± s.e.)", "rate", f"importance-weighted, {DRAWS} draws"], rows)
best = max(bounds, key=lambda name: bounds[name][0])
gain = bounds[best][0] - bounds["mean-field"][0]
spread = math.hypot(bounds[best][1], bounds["mean-field"][1])
verdict = (
    "mean-field itself"
    if best == "mean-field"
    else f"{best}, {gain:.2f} nats above mean-field, "
    + ("more than" if gain > 2 * spread else "less than")
    + " two standard errors of the difference"
)
first_half = float((paths["mean-field"][16] - paths["mean-field"][0]).norm())
second_half = float((paths["mean-field"][-1] - paths["mean-field"][16]).norm())
say(
    f"**Seen.** The mean-field mean moves by {first_half:.1f} in the first 16 steps and by {second_half:.1f} in the "
    f"last 16. It ends at {reach:.1f} from the prior's mean, which alone costs {reach**2 / 2:.2f} nats of the rate of "
    f"{float(fitted['mean-field'].with_noise(2).score(model, one).rate):.2f}; `delta` stays at "
    f"{float(paths['delta'][-1].norm()):.1f}, near the top of the slice. A likely reason for a difference: the slice "
    "has no noise in the other thirty directions, and q has. The best bound on this one text is that of "
    f"{verdict}. The last column estimates log p(x) itself: what a bound lacks to it is the price of its family and of "
    "few fast steps. A point has no density, and no bound judges it."
)

# %% [markdown]
# ## 3. Six objectives under one decoder
#
# The decoder is held still; only what the fast steps raise changes. 24 texts, mean-field,
# 24 fast steps (60 for the target rate, whose multiplier must settle), 4 draws.
#
# - `ELBO`: -distortion - rate. `beta`: -distortion - beta rate.
# - `IWAE`: log of the mean of K weights p(x, z) / q(z): a bound too, tighter as K grows. `Rényi` of order alpha lies
#   between: ELBO at 1, IWAE at 0, beyond ELBO above 1.
# - `free bits`: the first nats of the rate cost nothing. `target rate`: as many nats as asked for, held by a
#   multiplier.
#
# **Look for** one curve in the rate-distortion plane: beta, free bits and target rate choose a *place* on it. The
# dashed lines have slope -1, along them the ELBO is the same; the objective `ELBO` looks for the line that touches the
# curve lowest. Each family's curves over the fast steps start at the same height only where they estimate the same
# thing at q = prior.

# %%
FITS = {  # name: label, values, how to make it
    "beta": ("beta = {:g}", [0.05, 0.2, 0.5, 1.0, 2.0, 4.0], lambda value: BetaELBO(particles=4, beta=value)),
    "free bits": ("free bits, floor {:g}", [1.0, 2.0, 4.0, 6.0, 8.0], lambda value: FreeBits(particles=4, nats=value)),
    "target rate": ("target rate {:g}", [1.0, 2.0, 4.0, 6.0, 8.0], lambda value: TargetRate(particles=4, nats=value)),
    "IWAE": ("IWAE, {:g} draws", [2, 4, 8], lambda value: IWAE(particles=value)),
    "Rényi": ("Rényi, alpha = {:g}", [0.0, 0.5, 2.0], lambda value: Renyi(particles=4, alpha=value)),
    "ELBO": ("ELBO", [1.0], lambda value: AnalyticELBO(particles=4)),
}
COLOURS = dict(zip(FITS, made.COLOURS, strict=True))
MARKS = dict(zip(FITS, "osD^v*", strict=True))


def by_dimension(found):
    """[D] KL of each dimension, mean over texts, largest first."""
    mean, log_variance = found["state"]["loc"], found["state"]["log_variance"]
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    return kl.mean((0, 1)).sort(descending=True).values


found = {
    # The multiplier of a target rate has to settle.
    (name, value): measure(model, batch, make(value), steps=60 if name == "target rate" else 24)
    for name, (_, values, make) in FITS.items()
    for value in values
}

# %%
figure = Figure(figsize=(11, 3.6), layout="constrained")
curves, plane = figure.subplots(1, 2)
chosen = [("ELBO", 1.0), ("IWAE", 8), ("Rényi", 0.5), ("beta", 0.2), ("free bits", 4.0), ("target rate", 4.0)]
for name, value in chosen:
    label = FITS[name][0].format(value)
    history = found[name, value]["history"][:24]
    curves.plot(range(len(history)), history, color=COLOURS[name], marker=MARKS[name], markevery=4, label=label)
curves.set(xlabel="fast steps done", ylabel="own value, nats a text", title="What each objective raises")
curves.legend(fontsize=8, loc="lower right")


def draw_plane(axes, chosen=None):
    top = max(one["rate"] for one in found.values())
    low = min(one["distortion"] + one["rate"] for one in found.values())
    for nats in range(0, 40, 2):
        axes.axline((0, low + nats), slope=-1, color="0.8", linestyle="--", linewidth=0.8)
    for name, (_, values, _) in FITS.items():
        x, y = ([found[name, value][part] for value in values] for part in ("rate", "distortion"))
        line = "-" if name in ("beta", "free bits", "target rate") else "none"
        fade = 1.0 if chosen is None else 0.35
        size = 13 if name == "ELBO" else 6
        style = {"linestyle": line, "marker": MARKS[name], "color": COLOURS[name], "markersize": size, "lw": 1}
        axes.plot(x, y, **style, label=name, alpha=fade)
    if chosen is not None:
        circle = {"color": made.BLACK, "fillstyle": "none", "markersize": 14}
        axes.plot(found[chosen]["rate"], found[chosen]["distortion"], "o", **circle)
    high = max(one["distortion"] for one in found.values())
    axes.set(xlabel="rate, nats a text", ylabel="distortion, nats a text", xlim=(-0.3, top + 0.7))
    axes.set_ylim(low - top - 0.5, high + 1)
    axes.set_title("The rate-distortion plane")


draw_plane(plane)
plane.legend(fontsize=8)
show(figure)
compared({FITS[name][0].format(value): found[name, value] for name, value in chosen}, "objective")

# %%
low, high = found["beta", 4.0], found["beta", 0.05]
difference = found["ELBO", 1.0]["elbos"] - found["IWAE", 8]["elbos"]
say(
    f"**Seen.** From beta = 4 to beta = 0.05 the rate goes from {low['rate']:.2f} to {high['rate']:.2f} nats, and the "
    f"distortion from {low['distortion']:.1f} to {high['distortion']:.1f}. Asked for 4 nats, the target rate holds "
    f"{found['target rate', 4.0]['rate']:.2f}; a floor of 4 nats leaves {found['free bits', 4.0]['rate']:.2f}. The "
    "left panel's curves must not be ranked: they are values of different objectives, and those of beta below 1 and of "
    f"the target rate are no bounds. Judged alike, by the ELBO, the q of `ELBO` is {float(difference.mean()):.2f} ± "
    f"{standard_error(difference):.2f} nats above the q of `IWAE` with 8 draws, which seeks another q: one whose "
    "best draws are good."
)

# %% [markdown]
# ### Sliders
#
# Everything is computed already; the sliders only choose what is drawn. Without a live kernel (on a web page, say)
# they do not move: the figure below them shows the same for some of their values.


# %%
def view(name, value):
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    plane, bars = figure.subplots(1, 2)
    draw_plane(plane, (name, value))
    bars.bar(range(1, 33), by_dimension(found[name, value]).tolist(), color=COLOURS[name])
    bars.set(xlabel="latent dimension, sorted", ylabel="KL, nats", ylim=(0, HIGHEST))
    chosen = found[name, value]
    bars.set_title(f"{FITS[name][0].format(value)}: ELBO {chosen['elbo']:.1f}, rate {chosen['rate']:.1f}")
    return png(figure)


HIGHEST = 1.05 * max(float(by_dimension(one_found).max()) for one_found in found.values())
picture = widgets.Image(value=view("beta", 1.0), format="png")
family = widgets.Dropdown(options=list(FITS), value="beta", description="objective")
setting = widgets.SelectionSlider(options=FITS["beta"][1], value=1.0, description="value")


def on_family(change):
    values = FITS[change["new"]][1]
    setting.unobserve(on_setting, "value")
    setting.options = values
    setting.value = values[0]
    setting.observe(on_setting, "value")
    picture.value = view(change["new"], values[0])


def on_setting(change):
    picture.value = view(family.value, change["new"])


family.observe(on_family, "value")
setting.observe(on_setting, "value")
display(widgets.VBox([widgets.HBox([family, setting]), picture]))

# %%
figure = Figure(figsize=(11, 4.6), layout="constrained")
panels = figure.subplots(3, 3, sharex=True, sharey=True)
still = {"beta": [4.0, 1.0, 0.2], "target rate": [1.0, 4.0, 8.0], "Rényi": [0.0, 0.5, 2.0]}
for line, (name, values) in zip(panels, still.items(), strict=True):
    for axes, value in zip(line, values, strict=True):
        axes.bar(range(1, 33), by_dimension(found[name, value]).tolist(), color=COLOURS[name])
        chosen = found[name, value]
        axes.set_title(
            f"{FITS[name][0].format(value)}: rate {chosen['rate']:.1f}, distortion {chosen['distortion']:.1f}",
            fontsize=9,
        )
    line[0].set_ylabel("KL, nats")
for axes in panels[-1]:
    axes.set_xlabel("latent dimension, sorted")
show(figure)

# %% [markdown]
# ## 4. Why the choice of noise matters
#
# A fast step needs a draw z = mean + width · noise. The noise may be *fresh* in each step, *antithetic* (each second
# draw mirrors the one before), or *fixed*: one draw for all steps, which is what the reference implementation does.
# A fit on fixed noise can learn that draw: it moves the mean so that this one z is good. Scored on the same draw it
# then looks better than it is, and the score is no bound. Two settings, both with 16 steps of one draw: the reference's
# (`examples/reference.toml`: q starts narrow, AdamW at 0.34) and the library's own (q starts at the prior, Adam at 0.5
# with eps = 1).
#
# **Look for** the gap between the two columns, and for texts whose score on the fit's own draw lies above an estimate
# of log p(x).

# %%
many = model.precompute(held_out.batch(range(share_of(64, 6))))
SETTINGS = {
    "reference": (
        MeanField(1, 32, init_loc=0.01, init_log_variance=-5.0, init_noise=0.1),
        Adam(lr=0.34, beta1=0.9, eps=1e-8, weight_decay=0.01),
    ),
    "library": (MeanField(1, 32), Adam()),
}
careful = FastLoop(MeanField(1, 32), AnalyticELBO(particles=4), steps=share_of(32)).fit(model, many)
terms = careful.with_noise(4).score(model, many, particles=256)
log_evidence = terms.log_weight.logsumexp(0) - math.log(256)  # in expectation not above log p(x)
rows, gaps, above = [], {}, {}
for name, (guide, optimizer) in SETTINGS.items():
    for noise in ("fresh", "antithetic", "fixed"):
        posterior = FastLoop(guide, AnalyticELBO(), optimizer, steps=share_of(16), noise=noise).fit(model, many)
        scored = posterior.score(model, many), posterior.with_noise(5).score(model, many, particles=32)
        own, fresh = (-terms.distortion - terms.rate for terms in scored)
        gaps[name, noise], above[name, noise] = own - fresh, int((own > log_evidence).sum())
        figures = [f"{float(score.mean()):.2f} ± {standard_error(score):.2f}" for score in (own, fresh, own - fresh)]
        rows.append([f"{name}, {noise}", *figures, f"{above[name, noise]} of {len(own)}"])
table(["settings, noise", "on the fit's stream", "on fresh noise", "difference (paired)", "texts above log p(x)"], rows)
print(f"log p(x), importance-weighted estimate: {float(log_evidence.mean()):.2f} nats a text")

figure = Figure(figsize=(7, 2.8), layout="constrained")
axes = figure.subplots()
for shift, name, colour, mark in ((-0.08, "reference", made.ORANGE, "s"), (0.08, "library", made.BLUE, "o")):
    pairs = [gaps[name, noise] for noise in ("fresh", "antithetic", "fixed")]
    heights, errors = [float(gap.mean()) for gap in pairs], [2 * standard_error(gap) for gap in pairs]
    axes.errorbar([place + shift for place in range(3)], heights, errors, fmt=mark, color=colour, capsize=4, label=name)
axes.axhline(0, color="0.3", linestyle="--", linewidth=1)
axes.set_xticks(range(3), ["fresh", "antithetic", "fixed"])
axes.set(xlabel="noise of the fit", ylabel="own score less fresh score,\nnats a text (± 2 s.e.)", xlim=(-0.5, 2.5))
axes.legend(title="settings", fontsize=8, loc="upper left")
show(figure)

# %%
fixed, fresh, wide = gaps["reference", "fixed"], gaps["reference", "fresh"], gaps["library", "fixed"]
say(
    f"**Seen.** With the library's settings a fit on fixed noise is scored {float(wide.mean()):.1f} ± "
    f"{standard_error(wide):.1f} nats a text better on its own draw than on fresh noise. With the reference's it is "
    f"{float(fixed.mean()):.2f} ± {standard_error(fixed):.2f}: a q that starts narrow has little draw to learn, and "
    "pays for it with a KL that so few steps cannot take back (see its level in the table). On fresh noise the "
    "differences are "
    f"{float(fresh.mean()):.2f} ± {standard_error(fresh):.2f} and {float(gaps['library', 'fresh'].mean()):.2f} ± "
    f"{standard_error(gaps['library', 'fresh']):.2f}. "
    "One draw of a score may exceed log p(x) by chance; a bound may not on average. Above its estimate lie "
    f"{above['library', 'fixed']} texts of {len(wide)} with the library's settings on fixed noise, and "
    f"{above['library', 'fresh']} on fresh. After a fit on "
    "fresh or antithetic noise the stream goes on with draws that the fit has not seen (antithetic: but for a mirror "
    "image), so both columns estimate the same bound. On fixed noise the first column is a number about the draw, not "
    "about the model. That is why `evaluate` always scores on noise of its own."
)

# %% [markdown]
# ## Where to go on
#
# [The next notebook](training_with_objectives.ipynb) trains decoders with objectives, and with a guide of your own.
# `pyro-ltm guides` and `pyro-ltm objectives` list what there is; `examples/compare_guides.py` compares families and
# objectives on a whole run.

# %%
say_time(started)
