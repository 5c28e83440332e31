"""Keeping libraries quiet that log and warn through the root logger."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet"]


@contextmanager
def quiet() -> Iterator[None]:
    """No log lines below CRITICAL and no warnings while the block runs; the logging set-up is as before afterwards."""
    before = logging.root.manager.disable
    silent = logging.NullHandler()
    logging.root.addHandler(silent)  # with no handler at all the first root-level message would install one
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        logging.root.removeHandler(silent)
