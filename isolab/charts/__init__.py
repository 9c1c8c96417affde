"""Charts of result frames: what a person sees of a sweep.

Every chart takes a polars frame and returns an Altair chart on tidy, aggregated rows without NaN
or infinity. What cannot be drawn at its place is drawn at the edge with a mark of its own or named
in the subtitle, never dropped. An optimizer has the same colour everywhere
(:data:`OPTIMIZER_COLOURS`). Click a legend entry to keep or release it, drag to pan, Shift and
wheel to zoom, double click to reset; tooltips hold the numbers.

Call :func:`enable_offline_renderer` once in a notebook.
"""

from isolab.charts.curves import loss_curves
from isolab.charts.horizons import loss_vs_steps
from isolab.charts.measurements import invariance, step_time
from isolab.charts.parts import OPTIMIZER_COLOURS
from isolab.charts.rates import loss_vs_rate
from isolab.charts.renderer import enable_offline_renderer, offline_bundle, to_png

__all__ = [
    "OPTIMIZER_COLOURS",
    "enable_offline_renderer",
    "invariance",
    "loss_curves",
    "loss_vs_rate",
    "loss_vs_steps",
    "offline_bundle",
    "step_time",
    "to_png",
]
