"""Gradients, one file per operator family; see :mod:`converters.training.rules.base`."""
