"""Verbs of the command line: ``edgert agent run|enroll|status|rollback``."""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgert.cli import JsonFlag, emit, stdout
from edgert.errors import StoreError, UsageError

if TYPE_CHECKING:
    from agents.config import AgentConfig
    from agents.enroll import Identity
    from agents.state import StateFolder
    from edgert.profiles import Profile

__all__ = ["register"]

logger = logging.getLogger(__name__)

_agent = typer.Typer(
    name="agent",
    help="Run a box: serve its models, follow the fleet, learn from local examples.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_State = Annotated[Path, typer.Option("--state", help="Folder that holds everything the agent keeps.")]
_MaybeState = Annotated[Path | None, typer.Option("--state", help="Folder that holds everything the agent keeps.")]
_Kit = Annotated[Path | None, typer.Option("--kit", help="Enrolment kit; not needed once the box is enrolled.")]
_Profile = Annotated[str | None, typer.Option("--profile", help="Kind of box; default: the best match.")]
_Config = Annotated[Path | None, typer.Option("--config", help="TOML file with these settings.")]


_ANY_BOX = "generic-cpu"
"""The profile whose bundles run anywhere."""


def register(app: typer.Typer) -> None:
    """Add the verbs of this application to the `edgert` command."""
    app.add_typer(_agent, name="agent")


@_agent.command("run")
def _run(
    state: _MaybeState = None,
    kit: _Kit = None,
    profile: _Profile = None,
    serve_host: Annotated[str | None, typer.Option(help="Address to answer on; default: loopback only.")] = None,
    serve_port: Annotated[int | None, typer.Option(help="Port to answer on; 0 = any free one.")] = None,
    examples: Annotated[
        list[str] | None, typer.Option(metavar="MODEL=DIR", help="Local .npz examples of a model; may be repeated.")
    ] = None,
    config: _Config = None,
    log_level: Annotated[str | None, typer.Option(help="DEBUG, INFO, WARNING or ERROR.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Enrol if needed, serve the active models, and follow the fleet until stopped."""
    from agents import config as settings
    from edgert import logs

    read = settings.load(
        config,
        {
            "state": state,
            "kit": kit,
            "profile": profile,
            "serve_host": serve_host,
            "serve_port": serve_port,
            "examples": dict(map(_pair, examples)) if examples else None,
            "log_level": log_level,
        },
    )
    logs.setup(read.log_level, process="agent")
    _until_stopped(_supervise(read, as_json))


@_agent.command("enroll")
def _enroll(
    kit: Annotated[Path, typer.Option("--kit", help="Enrolment kit, made by `edgert ota claims new`.")],
    state: _State,
    profile: _Profile = None,
    as_json: JsonFlag = False,
) -> None:
    """Turn a kit into this box's own key and certificate."""
    from agents import config as settings
    from agents.state import StateFolder

    read = settings.load(None, {"state": state, "kit": kit, "profile": profile})
    folder = StateFolder(read.state)
    with folder.locked(time.sleep):
        identity = asyncio.run(_identity(read))
    if not emit({"device": identity.device, "state": str(read.state)}, as_json):
        stdout.print(f"enrolled as {identity.device}")


@_agent.command("status")
def _status(state: _State, as_json: JsonFlag = False) -> None:
    """What a box is: models, slots, versions, the last error; read from its folder, without network."""
    from agents import status

    found = status.read(state)
    if emit(found.model_dump(mode="json"), as_json):
        return
    stdout.print(f"device {found.device or 'not enrolled'}, profile {found.profile or 'unknown'}")
    stdout.print(f"agent {'running' if found.running else 'not running'}, follows assignment {found.revision}")
    for name, model in found.models.items():
        aim = f" -> {model.target_version}" if model.target_version else ""
        stdout.print(f"{name}: version {model.version} in slot {model.slot or '-'}, {model.phase}{aim}")
        if model.error:
            stdout.print(f"  {model.error}")
        if model.hint:
            stdout.print(f"  hint: {model.hint}")


@_agent.command("rollback")
def _rollback(
    state: _State,
    model: Annotated[str, typer.Option("--model", help="Which model.")],
    as_json: JsonFlag = False,
) -> None:
    """Let the other slot of a model answer, without network; the fleet's next assignment may update it again."""
    from agents import rollback, status

    rollback.take_back(state, model, pause=time.sleep)
    now = status.read(state).models[model]
    if not emit({"model": model, "version": now.version, "slot": now.slot}, as_json):
        stdout.print(f"{model} is back at version {now.version} in slot {now.slot}")


async def _supervise(config: "AgentConfig", as_json: bool) -> None:
    from agents.state import StateFolder
    from agents.supervisor import Supervisor
    from edgert.clock import SystemClock
    from edgert.wire.transports.mqtt import MqttTransport

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    folder = StateFolder(config.state)
    async with folder.owned():
        identity = await _unless_stopped(_identity(config), stop)
        if identity is None:
            return
        profile = _profile(config)
        _note_profile(folder, profile.name)
        supervisor = Supervisor(
            config, folder, identity, profile=profile, transports=MqttTransport, clock=SystemClock()
        )

        def ready(endpoint: str) -> None:
            if not emit({"device": identity.device, "endpoint": endpoint, "profile": profile.name}, as_json):
                stdout.print(f"{identity.device} answers on {endpoint}")
            sys.stdout.flush()

        await supervisor.run(stop, ready)


def _note_profile(folder: "StateFolder", name: str) -> None:
    """Remember the kind of box for ``edgert agent status``; a disk that refuses must not keep the box from serving."""
    memory = folder.memory()
    if memory.profile == name:
        return
    try:
        folder.remember(memory.model_copy(update={"profile": name}))
    except StoreError as e:
        logger.warning("the profile was not remembered: %s", e.message)


async def _identity(config: "AgentConfig") -> "Identity":
    from agents.enroll import enroll, known
    from agents.state import StateFolder
    from edgert.clock import SystemClock
    from edgert.wire.transports.mqtt import MqttTransport

    folder = StateFolder(config.state)
    if config.kit is None:
        identity = known(folder)
        if identity is None:
            raise UsageError("this box is not enrolled", hint="give --kit, made by `edgert ota claims new`")
        return identity
    return await enroll(
        folder,
        config.kit,
        _profile(config).name,
        transports=MqttTransport,
        clock=SystemClock(),
    )


async def _unless_stopped(work: "Coroutine[Any, Any, Identity]", stop: asyncio.Event) -> "Identity | None":
    task, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for one in (task, stopped):
            one.cancel()
        await asyncio.gather(task, stopped, return_exceptions=True)


def _until_stopped(main: Coroutine[Any, Any, None]) -> None:
    """Run `main`; after a clean stop leave at once: the thread that waits for a trial must not hold us up."""
    loop = asyncio.new_event_loop()
    loop.run_until_complete(main)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _profile(config: "AgentConfig") -> "Profile":
    from edgert import host, profiles

    if config.profile is not None:
        return profiles.load(config.profile)
    return profiles.load(next((match.name for match in profiles.match(host.detect()) if match.fits), _ANY_BOX))


def _pair(text: str) -> tuple[str, Path]:
    model, equals, folder = text.partition("=")
    if not equals or not model or not folder:
        raise UsageError(f"--examples {text!r} is not MODEL=DIR", hint="for example --examples digits-cnn=./examples")
    return model, Path(folder)
