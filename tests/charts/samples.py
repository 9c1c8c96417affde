"""Small result frames to draw, and every chart of them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import polars as pl

from isolab import charts
from isolab.analysis.epsilon import eps_lines
from isolab.analysis.optimum import at_best_rate, optima
from isolab.analysis.ranking import ranking
from isolab.analysis.transfer import exponents, regrets, sensitivities
from isolab.measure.coordinates import slopes
from isolab.measure.gradients import SecondMoment, damped_shares, gradient_exponents, root_histogram
from isolab.theory.tables import rate_lines
from isolab.theory.update_function import update_function
from isolab.training.config import RunConfig

RATES = (0.001, 0.003, 0.01, 0.02, 0.04, 0.08, 0.16)
BEST = {"adam": (-5.3, 1.83), "isoadam": (-4.8, 1.56), "muon": (-4.3, 1.58)}
POWERS = {"global": -1.0, "full": 0.0, "none": -0.5}
BY = ["parameterization", "rate_rule"]
LAYERS = {"embedding": 0.0, "blocks/0/up": -0.5, "blocks/0/down": 0.5, "logits": 1.0}
EPSILONS = (1e-2, 1e-4, 1e-8, 1e-20, 0.0)
SCALES = (1.0, 2.0**-20, 2.0**-60)
WIDTHS = (32, 64, 128)
ROLES = ("embedding", "hidden", "readout", "vector")


def sweep(best=BEST, seeds=3, steps=400, gone=(), column="optimizer"):
    """A rate sweep with parabolas in log2(rate) and some noise; ``gone``: (name, rate, seed)."""
    rng = np.random.default_rng(0)
    rows = []
    for (name, (x, low)), rate, seed in itertools.product(best.items(), RATES, range(seeds)):
        lost = (name, rate, seed) in gone
        loss = low + 0.03 * (math.log2(rate) - x) ** 2 + 0.01 * rng.normal()
        rows.append(
            {
                column: name, "learning_rate": rate, "seed": seed, "steps": steps,
                "final_validation_loss": math.inf if lost else loss, "diverged": lost,
            }
        )  # fmt: skip
    return pl.DataFrame(rows)


def with_curves(runs, points=21):
    """The same runs with curves that fall from 5.5; a diverged one rises and ends in NaN."""
    steps = np.linspace(0, 400, points).round().astype(int)
    validation = []
    for row in runs.iter_rows(named=True):
        end = 2.0 if row["diverged"] else row["final_validation_loss"]
        curve = end + (5.5 - end) * np.exp(-steps / 40)
        if row["diverged"]:
            curve[points // 2 :] += np.arange(points - points // 2)
            curve[-4:] = [np.nan, np.inf, np.nan, np.nan]
        validation.append(curve.astype(np.float32).tolist())
    return runs.with_columns(
        pl.Series("curve_step", [steps.tolist()] * len(runs)),
        pl.Series("curve_validation_loss", validation),
        pl.Series("curve_train_loss", [[v - 0.1 for v in its] for its in validation]),
    )


def lost_curves():
    """Curves at one rate; a seed of Adam diverged."""
    runs = sweep(gone=(("adam", 0.04, 1),)).filter(pl.col("learning_rate") == 0.04)
    return with_curves(runs)


def horizons():
    """Adam at four horizons, IsoAdam at one."""
    adam = [
        sweep({"adam": (-5.3, 1.3 + 16 * steps**-0.57)}, steps=steps)
        for steps in (200, 400, 800, 1600)
    ]
    return pl.concat([*adam, sweep({"isoadam": (-4.8, 1.3 + 11 * 400**-0.6)})])


def times():
    """Step times with three repeats."""
    return pl.DataFrame(
        [
            {"optimizer": name, "width": width, "step_ms": over * width**1.5 / 500 * repeat}
            for name, over in {"adam": 1.0, "isoadam": 1.2, "muon": 1.3}.items()
            for width in WIDTHS
            for repeat in (0.9, 1.0, 1.2)
        ]
    )


def changes():
    """Changes of updates, with one that is exactly 0."""
    rng = np.random.default_rng(1)
    sizes = {("adam", "inputs"): 0.5, ("isoadam", "inputs"): 2e-6, ("adam", "loss"): 1e-2}
    rows = [
        {"optimizer": name, "condition": kind, "relative_change": value * math.exp(rng.normal())}
        for (name, kind), value in sizes.items()
        for _ in range(5)
    ]
    zero = {"optimizer": "adam_atan2", "condition": "loss", "relative_change": 0.0}
    return pl.DataFrame([*rows, zero, zero])


def transfer(
    parameterizations=("standard", "mup"), rules=("global", "full"), widths=WIDTHS, gone=(),
    seeds=2, shift=0.0,
):  # fmt: skip
    """A rate sweep over widths: parabolas in log2(rate) whose lowest points move as a power."""
    rng = np.random.default_rng(0)
    rows = []
    grid = itertools.product(parameterizations, rules, widths, range(-11, -3), range(seeds))
    for p, rule, width, log, seed in grid:
        away = log + 6 - shift - POWERS[rule] * math.log2(width / 64)
        loss = 2 + 16 / width + 0.03 * away**2 + 0.005 * rng.normal()
        lost = (p, width, 2.0**log, seed) in gone
        rows.append((p, rule, width, 2.0**log, seed, math.inf if lost else loss))
    names = [*BY, "width", "learning_rate", "seed", "final_validation_loss"]
    return pl.DataFrame(rows, names, orient="row")


def of(origin, frame):
    """The frame with its origin."""
    return frame.with_columns(origin=pl.lit(origin))


def both(reference, yours=None):
    """Reference runs, and a reader's: the same ones unless others are given."""
    mine = reference if yours is None else yours
    return pl.concat([of("reference", reference), of("yours", mine)])


def both_transfers():
    """Reference runs, and a reader's at two of their widths and another one."""
    return both(transfer(), transfer(widths=(32, 48, 64), shift=0.5))


def best(runs, by=BY):
    """Best rates."""
    return optima(runs, [*by, "width"])


def fitted(runs, by=BY):
    """Powers fitted to best rates, and theory's."""
    found = exponents(runs, by)
    return found.with_columns(theory=pl.col("rate_rule").replace_strict(POWERS))


def check(widths=(32, 64, 256), seeds=(0, 1), steps=(0, 1, 4)):
    """A coordinate check whose layers go as powers of the width, seeds a factor of 2 apart."""
    rows = []
    for width, seed, step in itertools.product(widths, seeds, steps):
        for order, (layer, power) in enumerate(LAYERS.items()):
            size = 2.0**seed * (width / 32) ** power
            rows.append(
                ("mup", width, seed, step, layer, order, size, 0.1 * size if step else None)
            )
    names = ["parameterization", "width", "seed", "step", "layer", "order"]
    return pl.DataFrame(rows, [*names, "activation_rms", "change_rms"], orient="row")


def aligned(steps=(0, 1, 2, 5, 10, 100), lost=()):
    """Alignments that rise from 1/2 towards 1, the more the wider; none of changes at step 0."""
    rows = []
    for width, seed, step in itertools.product((32, 64), (0, 1, 2), steps):
        for layer, kind in itertools.product(
            ["z", "readout", "a"], ["weights", "change", "update"]
        ):
            if step or kind == "weights":
                value = 0.5 + 0.4 * step / 100 + 0.01 * seed + 0.02 * (layer == "z")
                value = math.nan if (layer, step) in lost else value
                role = "readout" if layer == "readout" else "hidden"
                rows.append((width, seed, step, layer, role, kind, value))
    names = ["width", "seed", "step", "layer", "role", "kind", "alignment"]
    return pl.DataFrame(rows, names, orient="row")


def cells(over="width", values=WIDTHS, lost=(), epsilons=EPSILONS):
    """A map of Adam with two rules of eps, and of Adam-atan2; ``lost``: (variant, eps, value)."""
    rows: list[dict[str, Any]] = [
        {"variant": variant, "eps": eps, over: value, "loss": 2.0 + i / 4 + 0.3 * j}
        for variant in ("adam", "adam, eps per layer")
        for (i, eps), (j, value) in itertools.product(enumerate(epsilons), enumerate(values))
    ]
    rows += [{"variant": "adam_atan2", "eps": None, over: value, "loss": 2.0} for value in values]
    for row in rows:
        gone = (row["variant"], row["eps"], row[over]) in lost
        row |= {"seeds": 3, "diverged": int(gone), "loss": math.inf if gone else row["loss"]}
    return pl.DataFrame(rows, infer_schema_length=None)


def gradients(names=("standard", "mean_field"), widths=(32, 64, 256), seeds=(0, 1)):
    """Gradients of hidden layers that fall as width to the -0.9, of others as width to the -0.1."""
    return pl.DataFrame(
        [
            {
                "parameterization": name, "step": 0, "role": role, "width": n, "seed": s,
                "gradient_rms": 1e-3 * 2.0**s * 3.0**-i * n ** (-0.9 if role == "hidden" else -0.1),
            }
            for name, n, s in itertools.product(names, widths, seeds)
            for i, role in enumerate(ROLES)
        ]
    )  # fmt: skip


def eps_curves(over="width", widths=(32, 64, 256)):
    """Where eps equals the gradient's size."""
    its = gradients(("mean_field",), widths)
    if over == "width":
        return eps_lines(its, base_width=32)
    scales = pl.DataFrame({"loss_scale": list(SCALES)})
    lines = eps_lines(its, 32).filter(width=64).join(scales, how="cross")
    return lines.with_columns(pl.col("eps") * pl.col("loss_scale"))


def moments():
    """Second moments of two roles, a fifth of the embedding's exactly 0."""
    rng = np.random.default_rng(0)
    return [
        SecondMoment(
            RunConfig(width=width), role,
            np.sort(np.float32(np.append(10 ** rng.normal(-4, 1, 200) / width, [0.0] * zeros))),
        )
        for width in (32, 64)
        for role, zeros in (("embedding", 50), ("hidden", 0))
    ]  # fmt: skip


def spectra(size=300):
    """Eigenvalues that fall as index to the -1, -2, ..."""
    rows = []
    names = itertools.product((0, 1), ("attention/qkv", "mlp/down"), ("input", "output"))
    for power, (block, matrix, side) in enumerate(names, start=1):
        for index in range(1, size + 1):
            rows.append((f"blocks/{block}/{matrix}", side, index, index ** -float(power)))
    return pl.DataFrame(rows, ["layer", "side", "index", "eigenvalue"], orient="row")


INSIDE = pl.DataFrame(
    {
        "step": [40] * 4,
        "layer": ["embedding", "blocks/0/mlp_norm", "blocks/0/mlp/up", "readout"],
        "role": ["embedding", "vector", "hidden", "readout"],
        "relative_update": [0.002, 0.0, 0.03, 0.4],
        "alignment": [None, None, 0.75, -0.25],
    }
)
GONE = tuple(("mup", 128, 2.0**-4, seed) for seed in (0, 1))
PANELS = {"rows": "parameterization", "columns": "rate_rule"}
ORIGIN = [*BY, "origin"]

EVERY = {
    "loss_vs_rate": lambda: charts.loss_vs_rate(sweep(gone=(("adam", 0.16, 0), ("adam", 0.16, 1)))),
    "loss_vs_rate width": lambda: charts.loss_vs_rate(
        sweep({32: (-5.0, 2.0), 128: (-7.0, 1.7)}, column="width"), color="width"
    ),
    "loss_curves": lambda: charts.loss_curves(
        at_best_rate(with_curves(sweep()), ["optimizer"]), y="train"
    ),
    "loss_curves lost": lambda: charts.loss_curves(lost_curves()),
    "loss_vs_steps": lambda: charts.loss_vs_steps(horizons()),
    "step_time": lambda: charts.step_time(times()),
    "invariance": lambda: charts.invariance(changes()),
    "theory_rates": lambda: charts.theory_rates(theory_lines()),
    "update_function": lambda: charts.update_function(update_function()),
    "loss_by_width": lambda: charts.loss_by_width(transfer(gone=GONE), **PANELS),
    "loss_by_width alone": lambda: charts.loss_by_width(transfer(("mup",), ("full",))),
    "best_rate_vs_width": lambda: charts.best_rate_vs_width(
        best(transfer()), fitted(transfer()), columns="parameterization"
    ),
    "ranking": lambda: charts.ranking(ranking(transfer(gone=GONE), BY)),
    "regrets": lambda: charts.regrets(regrets(transfer(), BY), columns="parameterization"),
    "sensitivities": lambda: charts.sensitivities(sensitivities(transfer(("mup",), gone=GONE), BY)),
    "coordinates": lambda: charts.coordinates(check()),
    "coordinates step": lambda: charts.coordinates(check(), columns="step"),
    "coordinate_slopes": lambda: charts.coordinate_slopes(slopes(check())),
    "alignment": lambda: charts.alignment(aligned(), rows="role"),
    "loss_by_eps": lambda: charts.loss_by_eps(
        cells(lost=[("adam", 0.0, 128)]), lines=eps_curves(widths=WIDTHS)
    ),
    "loss_by_eps scale": lambda: charts.loss_by_eps(
        cells("loss_scale", SCALES), "loss_scale", eps_curves("loss_scale")
    ),
    "loss_by_eps alone": lambda: charts.loss_by_eps(
        cells().filter(variant="adam_atan2"), columns=None
    ),
    "gradient_sizes": lambda: charts.gradient_sizes(gradients(), gradient_exponents(gradients())),
    "root_histogram": lambda: charts.root_histogram(root_histogram(moments()), [1e-8, 1e-4]),
    "damped_shares": lambda: charts.damped_shares(damped_shares(moments(), [1e-8, 1e-6, 1e-4])),
    "layers_inside": lambda: charts.layers_inside(INSIDE),
    "spectra": lambda: charts.spectra(spectra(), note="blocks 0, 1 of 9 only"),
}
BOTH_ORIGINS = {
    "loss_vs_rate": lambda: charts.loss_vs_rate(both(sweep())),
    "loss_curves": lambda: charts.loss_curves(both(lost_curves())),
    "loss_vs_steps": lambda: charts.loss_vs_steps(both(horizons())),
    "step_time": lambda: charts.step_time(both(times())),
    "loss_by_width": lambda: charts.loss_by_width(both_transfers(), **PANELS),
    "best_rate_vs_width": lambda: charts.best_rate_vs_width(
        best(both_transfers(), ORIGIN), fitted(both_transfers(), ORIGIN), **PANELS, color="origin"
    ),
    "ranking": lambda: charts.ranking(both(ranking(transfer(), BY))),
    "regrets": lambda: charts.regrets(
        regrets(both_transfers(), ORIGIN), columns="parameterization"
    ),
    "coordinates": lambda: charts.coordinates(both(check())),
    "coordinate_slopes": lambda: charts.coordinate_slopes(both(slopes(check()))),
    "alignment": lambda: charts.alignment(both(aligned()), rows="role"),
    "loss_by_eps": lambda: charts.loss_by_eps(both(cells()), rows="origin"),
    "gradient_sizes": lambda: charts.gradient_sizes(
        both(gradients()), both(gradient_exponents(gradients())), rows="origin"
    ),
}


def theory_lines():
    """Rates by theory, of two parameterizations and rules."""
    return rate_lines([32, 128, 512], 32, ["mup", "standard"], ["adam", "sgd"])
