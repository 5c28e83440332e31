"""Federated averaging: the mean of the updates, weighted by their numbers of examples.

Source: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, 2017, algorithm 1.
"""

from collections.abc import Mapping
from typing import Any

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
        if _shapes(self._sum) != _shapes(update.delta):
            raise CheckError("the updates have different parameters")
        for name, value in update.delta.items():
            self._sum[name] = self._sum[name] + value.astype(np.float64) * update.examples
        self._examples += update.examples

    def result(self, current: Weights) -> Weights:
        if not self._examples:
            raise CheckError("there is no update to average")
        if _shapes(self._sum) != _shapes(current):
            raise CheckError("the updates do not fit the model")
        mean = {name: value / self._examples for name, value in self._sum.items()}
        return {name: np.asarray(value + mean[name], np.float32) for name, value in current.items()}


def _shapes(values: Mapping[str, NDArray[Any]]) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in values.items()}


plugin = _FedAvg
