"""How many updates become one."""

from typing import Protocol

from edgert.federated.update import Update
from edgert.values import Weights

__all__ = ["Aggregator", "Factory"]


class Aggregator(Protocol):
    """Takes updates one by one, in bounded memory, and gives the new weights."""

    linear: bool
    """Whether the result depends only on the weighted sum of the updates (so a seal may hide the single ones)."""

    def add(self, update: Update) -> None:
        """Take one update.

        Raises:
            CheckError: it does not fit the ones before.
        """
        ...

    def result(self, current: Weights) -> Weights:
        """The new weights.

        Raises:
            CheckError: no update was added, or they do not fit `current`.
        """
        ...


class Factory(Protocol):
    """The plug-in object: makes a fresh aggregator for every round."""

    linear: bool

    def __call__(self) -> Aggregator: ...
