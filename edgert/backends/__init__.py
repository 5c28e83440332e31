"""Runtimes that open artifacts, one file each; the contract is :mod:`edgert.backends.base`."""
