"""Optimizers as optax transformations, and a catalog of them by name."""

from isolab.optimizers.adam_atan2 import adam_atan2, scale_by_adam_atan2
from isolab.optimizers.catalog import CATALOG, optimizer
from isolab.optimizers.iso import iso, isoadam, scale_by_iso, scale_by_isoadam

__all__ = [
    "CATALOG",
    "adam_atan2",
    "iso",
    "isoadam",
    "optimizer",
    "scale_by_adam_atan2",
    "scale_by_iso",
    "scale_by_isoadam",
]
