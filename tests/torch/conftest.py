"""Comparisons with PyTorch: collected only where it is installed, which `make test-torch` sees to."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("torch") else ["test_*.py"]
