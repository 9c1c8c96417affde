"""What the first notebook runs."""

from __future__ import annotations

from typing import Any

START: dict[str, dict[str, Any]] = {
    "smoke": {"width": 16, "steps": 20},
    "laptop": {"width": 64, "steps": 200},
    "full": {"width": 256, "steps": 2000},
}
"""The width and the steps, a multiple of 10, of its one small sweep."""
