"""The shell around the rollout machine: rows in, events, rows out, all in the caller's transaction."""

from collections import deque
from datetime import datetime

from edgert import plugins
from edgert.wire.messages.device import Event as DeviceEvent
from edgert.wire.twin import ModelState
from ota.rollouts import machine
from ota.rollouts.machine import DeviceStatus, Status
from ota.rollouts.strategies.base import Strategy
from ota.store import DeviceRow, RolloutDeviceRow, RolloutRow, Session, devices, releases, rollouts

__all__ = ["STRATEGIES", "begin", "observe_event", "observe_state"]

STRATEGIES = "ota.rollouts.strategies"
_INSTALLED = ("IDLE", "COMMIT")


def begin(session: Session, model: str, version: int, strategy: str, names: list[str], now: datetime) -> RolloutRow:
    """Start spreading a release to devices; a rollout of the same model that still runs is halted.

    Raises:
        UsageError: there is no such strategy.
    """
    plugins.load(STRATEGIES, strategy)
    for old in rollouts.unfinished(session, model, Status.RUNNING):
        _step(session, old, machine.Superseded(f"superseded by the rollout of version {version}"))
    row = RolloutRow(model=model, version=version, strategy=strategy, status=Status.PENDING, created=now)
    for name in names:
        previous = _assigned_version(devices.get(session, name), model)
        row.devices.append(
            RolloutDeviceRow(device=name, status=DeviceStatus.WAITING, previous_version=previous, phase="")
        )
    session.add(row)
    session.flush()
    _step(session, row, machine.Start())
    return row


def observe_state(session: Session, device: str, revision: int, models: dict[str, ModelState]) -> None:
    """Take in what a device says it is.

    Args:
        revision: of the last `Desired` it accepted.
    """
    for rollout, row in rollouts.following(session, device, DeviceStatus.ASSIGNED):
        state = models.get(rollout.model)
        if state is None or revision < row.revision:
            continue
        row.phase = state.phase
        if state.version == rollout.version and state.phase in _INSTALLED:
            _step(session, rollout, machine.Installed(device))
        elif state.phase == "FAILED" and state.target_version in (0, rollout.version):
            _fail(session, rollout, row, state.error)


def observe_event(session: Session, device: str, event: DeviceEvent) -> None:
    """Take in one phase of an update."""
    for rollout, row in rollouts.following(session, device, DeviceStatus.ASSIGNED):
        if rollout.model != event.model or rollout.version != event.version or event.revision < row.revision:
            continue
        row.phase, row.done_bytes, row.total_bytes = event.phase, event.done_bytes, event.total_bytes
        if event.phase == "FAILED":
            _fail(session, rollout, row, event.error)


def _fail(session: Session, rollout: RolloutRow, row: RolloutDeviceRow, error: str) -> None:
    row.error = error[:500] or "the device gave no reason"
    _step(session, rollout, machine.Failed(row.device, row.error))


def _step(session: Session, row: RolloutRow, event: machine.Event) -> None:
    todo: deque[machine.Event] = deque([event])
    while todo:
        before = machine.Rollout(
            Status(row.status), {part.device: DeviceStatus(part.status) for part in row.devices}, row.reason
        )
        after, effects = machine.step(before, todo.popleft())
        row.status, row.reason = after.status.value, after.reason
        for part in row.devices:
            part.status = after.devices[part.device].value
        for effect in effects:
            if isinstance(effect, machine.AskStrategy):
                strategy: Strategy = plugins.load(STRATEGIES, row.strategy)
                todo.append(machine.Chosen(strategy.next_wave(after.devices)))
            else:
                _perform(session, row, effect)
    session.flush()


def _perform(session: Session, row: RolloutRow, effect: machine.Assign | machine.Revert) -> None:
    part = next(part for part in row.devices if part.device == effect.device)
    device = devices.get(session, effect.device)
    if isinstance(effect, machine.Revert) and _assigned_version(device, row.model) != row.version:
        return  # a newer rollout has given it something else since
    version = row.version if isinstance(effect, machine.Assign) else part.previous_version
    bundle = releases.bundle_for(session, row.model, version, device.profile) if version else None
    revision = devices.assign(session, device, row.model, bundle)
    if isinstance(effect, machine.Assign):
        part.revision = revision


def _assigned_version(device: DeviceRow, model: str) -> int:
    return next((row.bundle.release.version for row in device.assignments if row.model == model), 0)
