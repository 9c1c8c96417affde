"""Which optimizer rule a parameter gets: labels beside the parameters, as optax.partition wants."""

from __future__ import annotations

from typing import Any

import jax

MATRIX = "matrix"  # gets the matrix rule: Iso, Muon
FALLBACK = "vector"  # gets the entrywise rule: Adam


def labels_from_roles(roles: Any) -> Any:
    """Returns labels from a pytree of roles: ``"hidden"`` is a matrix, every other role is not."""
    return jax.tree.map(lambda role: MATRIX if role == "hidden" else FALLBACK, roles)
