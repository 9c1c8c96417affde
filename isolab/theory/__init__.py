"""Exponents of parameterizations and what follows from them: arithmetic, without arrays."""
