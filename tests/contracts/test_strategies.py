"""Every rollout strategy reaches every device, in waves that depend on nothing but the devices."""

import pytest

from edgert import plugins
from ota.rollouts.engine import STRATEGIES
from ota.rollouts.machine import DeviceStatus
from ota.rollouts.strategies.base import Strategy

DEVICES = {f"box{number}": DeviceStatus.WAITING for number in range(20)}


@pytest.fixture(params=plugins.names(STRATEGIES))
def strategy(request: pytest.FixtureRequest) -> Strategy:
    found: Strategy = plugins.load(STRATEGIES, request.param)
    return found


def test_waves_end_with_every_device_done(strategy: Strategy) -> None:
    devices = dict(DEVICES)
    for _ in range(len(devices)):
        wave = strategy.next_wave(devices)
        if not wave:
            break
        assert all(devices[name] is DeviceStatus.WAITING for name in wave)
        devices |= dict.fromkeys(wave, DeviceStatus.DONE)
    assert set(devices.values()) == {DeviceStatus.DONE}
    assert strategy.next_wave(devices) == frozenset()


def test_the_same_devices_make_the_same_wave(strategy: Strategy) -> None:
    assert strategy.next_wave(DEVICES) == strategy.next_wave(dict(reversed(DEVICES.items())))


def test_a_device_that_failed_is_not_chosen_again(strategy: Strategy) -> None:
    devices = dict.fromkeys(DEVICES, DeviceStatus.FAILED)
    assert strategy.next_wave(devices) == frozenset()
