"""What happens to a rollout: a pure machine, (rollout, event) -> (rollout, effects).

The table `TRANSITIONS` is the whole of it. An event that no row accepts is an error: the engine turns what devices
report into events only for devices that are under way.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final, TypeAlias

from edgert.errors import UsageError

__all__ = [
    "TRANSITIONS",
    "AskStrategy",
    "Assign",
    "Chosen",
    "DeviceStatus",
    "Effect",
    "Event",
    "Failed",
    "Installed",
    "Revert",
    "Rollout",
    "Row",
    "Start",
    "Status",
    "Superseded",
    "step",
]


class Status(StrEnum):
    """Where a rollout stands."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    DONE = "DONE"
    HALTED = "HALTED"


class DeviceStatus(StrEnum):
    """Where one device of a rollout stands."""

    WAITING = "WAITING"
    ASSIGNED = "ASSIGNED"
    DONE = "DONE"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Rollout:
    """One release on its way to some devices.

    Args:
        devices: where each of them stands.
        reason: why it was halted.
    """

    status: Status = Status.PENDING
    devices: Mapping[str, DeviceStatus] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Start:
    """An operator wants it."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The strategy chose these waiting devices (none = nothing is left to do)."""

    devices: frozenset[str]


@dataclass(frozen=True, slots=True)
class Installed:
    """A device that was assigned the release answers from it."""

    device: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A device that was assigned the release refused it or went back."""

    device: str
    reason: str


@dataclass(frozen=True, slots=True)
class Superseded:
    """A newer rollout of the same model begins."""

    reason: str


@dataclass(frozen=True, slots=True)
class AskStrategy:
    """Ask the strategy for the next wave; answer with `Chosen`."""


@dataclass(frozen=True, slots=True)
class Assign:
    """Make the release what this device should serve."""

    device: str


@dataclass(frozen=True, slots=True)
class Revert:
    """Make what the device served before its assignment again."""

    device: str


Event: TypeAlias = Start | Chosen | Installed | Failed | Superseded
Effect: TypeAlias = AskStrategy | Assign | Revert
Devices: TypeAlias = Mapping[str, DeviceStatus]
Guard: TypeAlias = Callable[[Rollout, Any], bool]
"""Whether a row accepts an event; its second argument is the event type of the row."""
Action: TypeAlias = Callable[[Rollout, Any], tuple[Devices, list[Effect]]]


@dataclass(frozen=True, slots=True)
class Row:
    """In `state`, on `event`, if `guard`: go to `to` and do `action`."""

    state: Status
    event: type[Event]
    guard: Guard
    to: Status
    action: Action


def step(rollout: Rollout, event: Event) -> tuple[Rollout, list[Effect]]:
    """What a rollout becomes, and what is to be done.

    Raises:
        UsageError: the event does not fit the state.
    """
    for row in TRANSITIONS:
        if row.state is rollout.status and row.event is type(event) and row.guard(rollout, event):
            devices, effects = row.action(rollout, event)
            halted = row.to is Status.HALTED and isinstance(event, Failed | Superseded) and not rollout.reason
            reason = _reason(event) if halted else rollout.reason
            return replace(rollout, status=row.to, devices=devices, reason=reason), effects
    raise UsageError(f"a rollout that is {rollout.status} cannot take {event}")


def _reason(event: Event) -> str:
    if isinstance(event, Failed):
        return f"{event.device}: {event.reason}"
    return event.reason if isinstance(event, Superseded) else ""


def _always(rollout: Rollout, event: Event) -> bool:
    return True


def _some(rollout: Rollout, event: Chosen) -> bool:
    waiting = {name for name, status in rollout.devices.items() if status is DeviceStatus.WAITING}
    return bool(event.devices) and event.devices <= waiting and not _under_way(rollout)


def _none(rollout: Rollout, event: Chosen) -> bool:
    return not event.devices and not _under_way(rollout)


def _open(rollout: Rollout, event: Installed) -> bool:
    return _assigned(rollout, event) and len(_under_way(rollout)) > 1


def _last(rollout: Rollout, event: Installed) -> bool:
    return _assigned(rollout, event) and len(_under_way(rollout)) == 1


def _assigned(rollout: Rollout, event: Installed | Failed) -> bool:
    return rollout.devices.get(event.device) is DeviceStatus.ASSIGNED


def _under_way(rollout: Rollout) -> list[str]:
    return [name for name, status in rollout.devices.items() if status is DeviceStatus.ASSIGNED]


def _nothing(rollout: Rollout, event: Event) -> tuple[Devices, list[Effect]]:
    return rollout.devices, []


def _ask(rollout: Rollout, event: Event) -> tuple[Devices, list[Effect]]:
    return rollout.devices, [AskStrategy()]


def _assign(rollout: Rollout, event: Chosen) -> tuple[Devices, list[Effect]]:
    chosen = sorted(event.devices)
    devices = {**rollout.devices, **dict.fromkeys(chosen, DeviceStatus.ASSIGNED)}
    return devices, [Assign(device) for device in chosen]


def _done(rollout: Rollout, event: Installed) -> tuple[Devices, list[Effect]]:
    return {**rollout.devices, event.device: DeviceStatus.DONE}, []


def _done_ask(rollout: Rollout, event: Installed) -> tuple[Devices, list[Effect]]:
    return _done(rollout, event)[0], [AskStrategy()]


def _revert(rollout: Rollout, event: Failed) -> tuple[Devices, list[Effect]]:
    return {**rollout.devices, event.device: DeviceStatus.FAILED}, [Revert(event.device)]


TRANSITIONS: Final = (
    # state              event        guard       to               action
    Row(Status.PENDING,  Start,       _always,    Status.RUNNING,  _ask),
    Row(Status.RUNNING,  Chosen,      _some,      Status.RUNNING,  _assign),
    Row(Status.RUNNING,  Chosen,      _none,      Status.DONE,     _nothing),
    Row(Status.RUNNING,  Installed,   _open,      Status.RUNNING,  _done),
    Row(Status.RUNNING,  Installed,   _last,      Status.RUNNING,  _done_ask),
    Row(Status.RUNNING,  Failed,      _assigned,  Status.HALTED,   _revert),
    Row(Status.RUNNING,  Superseded,  _always,    Status.HALTED,   _nothing),
    Row(Status.HALTED,   Installed,   _assigned,  Status.HALTED,   _done),
    Row(Status.HALTED,   Failed,      _assigned,  Status.HALTED,   _revert),
)  # fmt: skip
