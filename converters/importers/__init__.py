"""Readers of model files, one file per format; the contract is :mod:`converters.importers.base`."""
