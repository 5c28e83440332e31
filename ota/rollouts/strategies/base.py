"""Which devices come next."""

from collections.abc import Mapping
from typing import Protocol

from ota.rollouts.machine import DeviceStatus

__all__ = ["Strategy"]


class Strategy(Protocol):
    """Chooses waves. The same devices with the same states always give the same wave."""

    def next_wave(self, devices: Mapping[str, DeviceStatus]) -> frozenset[str]:
        """The waiting devices that get the release now; empty when none is left.

        Args:
            devices: every device of the rollout; none of them is under way.
        """
        ...
