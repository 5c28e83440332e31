"""Federated averaging: the mean of the updates, weighted by their numbers of examples.

Source: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, 2017, algorithm 1.
"""

import numpy as np
from numpy.typing import NDArray

from edgert.errors import CheckError
from edgert.federated.update import Update
from edgert.values import Weights

__all__ = ["plugin"]


class _FedAvg:
    linear = True

    def __init__(self) -> None:
        self._sum: dict[str, NDArray[np.float64]] = {}
        self._examples = 0

    def add(self, update: Update) -> None:
        if not self._sum:
            self._sum = {name: np.zeros(value.shape) for name, value in update.delta.items()}
        if set(self._sum) != set(update.delta):
            raise CheckError("the updates have different parameters")
        for name, value in update.delta.items():
            self._sum[name] += value.astype(np.float64) * update.examples
        self._examples += update.examples

    def result(self, current: Weights) -> Weights:
        if not self._examples:
            raise CheckError("there is no update to average")
        if set(self._sum) != set(current):
            raise CheckError("the updates do not fit the model")
        return {name: (value + self._sum[name] / self._examples).astype(np.float32) for name, value in current.items()}


plugin = _FedAvg
