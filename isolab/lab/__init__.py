"""The live lab: sliders that answer from stored runs at once, and a button that trains for real."""

from isolab.lab.lab import Lab

__all__ = ["Lab"]
