"""Schemes that decide how tensors are stored, one file each; the contract is :mod:`converters.quantize.base`."""
