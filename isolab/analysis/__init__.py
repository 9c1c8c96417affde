"""From result frames to numbers: optima, speedups and the verdicts that rest on them.

Nothing is imported here, so that ``import isolab`` stays quick; reach the modules by name:
:mod:`isolab.analysis.optimum`, :mod:`isolab.analysis.speedup`, :mod:`isolab.analysis.claim`,
and :mod:`isolab.analysis.seeds`, which holds the intervals that they share.
"""
