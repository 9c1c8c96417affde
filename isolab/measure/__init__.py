"""Measurements of models in training: sizes, gradients, alignment, spectra, step times."""
