"""Every device in one wave: for small fleets, and for the last step of larger plans."""

from collections.abc import Mapping

from ota.rollouts.machine import DeviceStatus

__all__ = ["plugin"]


class _AllAtOnce:
    def next_wave(self, devices: Mapping[str, DeviceStatus]) -> frozenset[str]:
        return frozenset(name for name, status in devices.items() if status is DeviceStatus.WAITING)


plugin = _AllAtOnce()
