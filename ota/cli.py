"""The verbs ``edgert ota ...`` and ``edgert federate ...``."""

import asyncio
import importlib.util
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from edgert.cli import JsonFlag, emit, progress, stderr, stdout, table
from edgert.errors import CheckError, LinkError, UsageError

if TYPE_CHECKING:
    from ota.fleet import Fleet

__all__ = ["register"]

for _library in ("sqlalchemy", "tuf", "paho"):
    if importlib.util.find_spec(_library) is None:
        raise ModuleNotFoundError(f"{_library} is not installed: the verbs need the extra `ota`")

_POLL_S = 0.1
_AFTER_ABORT = "the devices go on as before; see `edgert federate status`, mend the cause and start another job"

_ota = typer.Typer(name="ota", help="Run a fleet: enrol boxes, publish models, roll them out.", no_args_is_help=True)
_claims = typer.Typer(name="claims", help="One-time certificates that boxes enrol with.", no_args_is_help=True)
_ota.add_typer(_claims)
_federate = typer.Typer(
    name="federate", help="Let devices learn without their examples leaving them.", no_args_is_help=True
)

_Row: TypeAlias = dict[str, Any]
HomeArgument = Annotated[Path, typer.Argument(help="Home folder of the fleet.", metavar="HOME")]


def register(app: typer.Typer) -> None:
    """Add the verbs of this application to the `edgert` command."""
    app.add_typer(_ota)
    app.add_typer(_federate)


@contextmanager
def _opened(home: Path) -> Iterator["Fleet"]:
    from ota.fleet import Fleet

    fleet = Fleet.open(home)
    try:
        yield fleet
    finally:
        fleet.close()


@_ota.command("init")
def _init(
    home: HomeArgument,
    host: Annotated[str, typer.Option(help="Name or address under which boxes reach the broker.")],
    port: Annotated[int, typer.Option(help="Port of the broker.")] = 8883,
    bind: Annotated[str, typer.Option(help="Address the broker listens on; empty = every address.")] = "",
    connect_host: Annotated[str, typer.Option(help="Where the server reaches the broker; empty = --host.")] = "",
    broker_user: Annotated[
        str, typer.Option(help="Whom the broker becomes when root starts it (default: mosquitto).")
    ] = "",
    as_json: JsonFlag = False,
) -> None:
    """Make a fleet: keys, signed repository, certificate authority, broker configuration."""
    from edgert.clock import SystemClock
    from ota.config import Home
    from ota.fleet import create

    values: dict[str, object] = {"host": host, "port": port, "bind": bind, "connect_host": connect_host}
    fleet = create(home, Home.settings_of(values | {"broker_user": broker_user}), SystemClock())
    fleet.close()
    config = fleet.home.broker / "mosquitto.conf"
    result = {"home": str(fleet.home.root), "broker_config": str(config), "host": host, "port": port}
    if emit(result, as_json):
        return
    stdout.print(f"made the fleet {fleet.home.root}")
    stdout.print(f"  start the broker:  mosquitto -c {config}")
    stdout.print(f"  start the server:  edgert ota serve {home}")
    stdout.print(f"  enrol a box:       edgert ota claims new {home} --device box1 -o kit-box1")
    stderr.print(f"Keep {fleet.home.keys / 'root.pem'} offline: whoever has it can replace every other key.")


@_ota.command("serve")
def _serve(
    home: HomeArgument, log_level: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR.")] = "INFO"
) -> None:
    """Run the fleet's server until it is stopped (SIGTERM or Ctrl-C)."""
    from edgert import logs
    from ota import server
    from ota.config import held

    logs.setup(log_level, process="ota")
    with _opened(home) as fleet, held(fleet.home.root, "server"):
        asyncio.run(_until_signal(fleet, server.make_transport(fleet.home)))


async def _until_signal(fleet: "Fleet", transport: Any) -> None:
    from ota import server

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await server.serve(fleet, transport, stop)


def _server_runs(home: Path) -> bool:
    """Whether the fleet's server runs; says so on standard error when it does not: nothing reaches a box without it."""
    from ota.config import is_held

    running = is_held(home, "server")
    if not running:
        stderr.print(f"note: the server of this fleet is not running; start it with: edgert ota serve {home}")
    return running


@_ota.command("publish")
def _publish(
    home: HomeArgument,
    bundles: Annotated[list[Path], typer.Argument(help="Bundle files of one model, one per profile.")],
    source: Annotated[
        list[Path] | None, typer.Option(help="Source of each bundle, in order; default: beside it.")
    ] = None,
    no_source: Annotated[
        bool, typer.Option("--no-source", help="Publish without Source: the model cannot be rebuilt.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Sign bundles as the next release of their model."""
    from ota.operations.actor import local_operator
    from ota.operations.release import publish

    if source and no_source:
        raise UsageError("--source and --no-source contradict each other", hint="leave one of them out")
    with _opened(home) as fleet:
        result = publish(fleet, local_operator(), bundles, sources=source or (), without_source=no_source)
    if not emit(result, as_json):
        stdout.print(f"published {result['model']} version {result['version']}")
        stdout.print(f"  roll it out: edgert ota rollout {home} --model {result['model']}")


@_ota.command("rollout")
def _rollout(
    home: HomeArgument,
    model: Annotated[str, typer.Option(help="Name of the model.")],
    version: Annotated[int | None, typer.Option(help="Which release; default: the newest.")] = None,
    devices: Annotated[str, typer.Option(help="Names, with commas; default: every device it fits.")] = "",
    strategy: Annotated[str, typer.Option(help="How it spreads.")] = "all-at-once",
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it is done or halted.")] = False,
    timeout_s: Annotated[float, typer.Option(help="How long to wait, in seconds.")] = 600,
    as_json: JsonFlag = False,
) -> None:
    """Spread a release."""
    from ota.operations.actor import local_operator
    from ota.operations.spread import rollout_start

    names = [name.strip() for name in devices.split(",") if name.strip()]
    _server_runs(home)
    with _opened(home) as fleet:
        result = rollout_start(fleet, local_operator(), model, version=version, names=names, strategy=strategy)
        if wait:
            result = _wait_for_rollout(fleet, result, timeout_s)
    if result["status"] == "HALTED":
        raise CheckError(f"the rollout was halted: {result['reason']}", hint="see `edgert ota devices`")
    if not emit(result, as_json):
        stdout.print(
            f"rollout {result['rollout']} of {model} version {result['version']}: {result['status']}, "
            f"{len(result['devices'])} devices"
        )


def _wait_for_rollout(fleet: "Fleet", result: _Row, timeout_s: float) -> _Row:
    from ota.operations.actor import local_operator
    from ota.operations.spread import rollout_status

    what = f"rollout of {result['model']} version {result['version']}"

    def late(now: _Row) -> LinkError:
        waiting = [name for name, row in now["devices"].items() if row["status"] != "DONE"]
        return LinkError(
            f"rollout {now['rollout']} was not done in {timeout_s:g} s: waiting for {', '.join(waiting)}",
            hint="it goes on; are the server and these devices running?",
        )

    with progress(what, len(result["devices"])) as advance:

        def look() -> _Row:
            now = rollout_status(fleet, local_operator(), result["rollout"])
            rows = now["devices"].values()
            done = sum(1.0 if row["status"] == "DONE" else _share(row) for row in rows)
            phases = ", ".join(sorted({row["phase"] or row["status"] for row in rows}))
            advance(done, len(rows), f"{what}: {phases}")
            return now

        return _wait(look, lambda now: now["status"] not in ("PENDING", "RUNNING"), timeout_s, late)


def _wait(
    look: Callable[[], _Row], is_over: Callable[[_Row], bool], timeout_s: float, late: Callable[[_Row], LinkError]
) -> _Row:
    """Look again and again until it is over; after the deadline raise what `late` makes of the last look."""
    deadline = time.monotonic() + timeout_s
    while not is_over(now := look()):
        if time.monotonic() > deadline:
            raise late(now)
        time.sleep(_POLL_S)
    return now


def _share(row: _Row) -> float:
    return 0.9 * row["done_bytes"] / row["total_bytes"] if row["total_bytes"] else 0.0


@_ota.command("devices")
def _devices(home: HomeArgument, as_json: JsonFlag = False) -> None:
    """Show every device: what it should be, what it says it is."""
    from ota.operations.actor import local_operator
    from ota.operations.enrol import devices_list

    with _opened(home) as fleet:
        rows = devices_list(fleet, local_operator())
    if emit({"devices": rows}, as_json):
        return
    running = _server_runs(home)
    shown = table("device", "profile", "online", "model", "version", "phase", "endpoint", "error")
    for row in rows:
        for model in sorted(row["models"].keys() | row["desired"].keys()) or [""]:
            state = row["models"].get(model, {})
            installed, wanted = state.get("version", 0), row["desired"].get(model, 0)
            version = f"{installed or '-'}" if installed == wanted or not wanted else f"{installed or '-'} -> {wanted}"
            shown.add_row(
                row["device"], row["profile"], ("yes" if row["online"] else "no") if running else "?", model, version,
                state.get("phase", ""), row["endpoint"], state.get("error", ""),
            )  # fmt: skip
    stdout.print(shown)


@_claims.command("new")
def _claims_new(
    home: HomeArgument,
    device: Annotated[str, typer.Option(help="Name the box will have.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the kit.")],
    days: Annotated[int | None, typer.Option(min=1, help="Until the claim ends.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a kit: carried to one box, it lets that box enrol once."""
    from ota.operations.actor import local_operator
    from ota.operations.enrol import claims_new

    with _opened(home) as fleet:
        result = claims_new(fleet, local_operator(), device, output, days=days)
    if not emit(result, as_json):
        stdout.print(f"made {output} for {device}; it holds a private key, good until {result['expires'][:10]}")
        stdout.print(f"  on the box: edgert agent run --kit {output.name} --state /var/lib/edgert")


@_claims.command("list")
def _claims_list(home: HomeArgument, as_json: JsonFlag = False) -> None:
    """Show every claim."""
    from ota.operations.actor import local_operator
    from ota.operations.enrol import claims_list

    with _opened(home) as fleet:
        rows = claims_list(fleet, local_operator())
    if emit({"claims": rows}, as_json):
        return
    shown = table("claim", "device", "state", "expires")
    for row in rows:
        shown.add_row(row["claim"], row["device"], row["state"], row["expires"][:10])
    stdout.print(shown)


@_federate.command("start")
def _federate_start(
    home: HomeArgument,
    model: Annotated[str, typer.Option(help="Name of the model; its newest release is trained.")],
    participants: Annotated[int, typer.Option(min=1, help="How many devices take part.")],
    quorum: Annotated[int | None, typer.Option(min=1, help="How many updates are enough; default: all.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How many rounds.")] = 1,
    epochs: Annotated[int | None, typer.Option(help="Passes over the examples in one round.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of stochastic gradient descent.")] = None,
    momentum: Annotated[float | None, typer.Option(help="Of stochastic gradient descent.")] = None,
    deadline_s: Annotated[float, typer.Option(help="Seconds for joining, and for each round.")] = 120.0,
    aggregator: Annotated[str, typer.Option(help="How many updates become one.")] = "fedavg",
    profile: Annotated[str | None, typer.Option(help="Whose bundle is trained, if the release has several.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it is published or aborted.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Begin a federated job: train, average, rebuild, check, publish, roll out."""
    from ota.operations.actor import local_operator
    from ota.operations.learn import federate_start, local_training

    _server_runs(home)
    local = local_training(epochs=epochs, learning_rate=learning_rate, momentum=momentum)
    with _opened(home) as fleet:
        result = federate_start(
            fleet,
            local_operator(),
            model,
            participants=participants,
            quorum=quorum,
            rounds=rounds,
            deadline_s=deadline_s,
            aggregator=aggregator,
            profile=profile,
            local=local,
        )
        if wait:
            result = _wait_for_job(fleet, result)
    if result["phase"] == "ABORTED":
        raise CheckError(f"job {result['job']} was aborted: {result['reason']}", hint=_AFTER_ABORT)
    if not emit(result, as_json):
        stdout.print(f"job {result['job']}: {result['phase']}")
        if result["version"]:
            stdout.print(f"  {model} version {result['version']}, accuracy {result['accuracy']:.4f}")
            stdout.print(f"  it rolls out: see edgert ota devices {home}")


def _wait_for_job(fleet: "Fleet", result: _Row) -> _Row:
    from ota.operations.actor import local_operator
    from ota.operations.learn import federate_status

    rounds = int(result["rounds"])
    wait_s = (rounds + 1) * float(result["deadline_s"]) + fleet.home.settings.rebuild_timeout_s

    def late(now: _Row) -> LinkError:
        return LinkError(
            f"job {now['job']} is {now['phase']} after {wait_s:.0f} s", hint="is `edgert ota serve` running?"
        )

    with progress(f"job {result['job']}", rounds + 1) as advance:

        def look() -> _Row:
            (now,) = federate_status(fleet, local_operator(), result["job"])
            part = len(now["received"]) / max(1, len(now["joined"]))
            done = max(0, now["round"] - 1) + part if now["phase"] == "COLLECTING" else now["round"]
            text = f"{len(now['joined'])} joined, {len(now['received'])} updates"
            advance(done, rounds + 1, f"job {now['job']}, round {now['round']}: {now['phase']}, {text}")
            return now

        return _wait(look, lambda now: now["phase"] in ("PUBLISHED", "ABORTED"), wait_s, late)


@_federate.command("stop")
def _federate_stop(
    home: HomeArgument,
    job: Annotated[str, typer.Option(help="Which job.")],
    as_json: JsonFlag = False,
) -> None:
    """End a job without a release, unless that is being signed already."""
    from ota.operations.actor import local_operator
    from ota.operations.learn import federate_stop

    with _opened(home) as fleet:
        result = federate_stop(fleet, local_operator(), job)
    if not emit(result, as_json):
        stdout.print(f"asked job {job} to stop: the running server ends it")


@_federate.command("status")
def _federate_status(
    home: HomeArgument,
    job: Annotated[str | None, typer.Option(help="One job; default: all.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show federated jobs."""
    from ota.operations.actor import local_operator
    from ota.operations.learn import federate_status

    with _opened(home) as fleet:
        rows = federate_status(fleet, local_operator(), job)
    if emit({"jobs": rows}, as_json):
        return
    shown = table("job", "phase", "round", "joined", "received", "accuracy", "version", "reason")
    for row in rows:
        accuracy = "" if row["accuracy"] is None else f"{row['accuracy']:.4f}"
        shown.add_row(
            row["job"], row["phase"], f"{row['round']}/{row['rounds']}", ", ".join(row["joined"]),
            ", ".join(row["received"]), accuracy, str(row["version"] or ""), row["reason"],
        )  # fmt: skip
    stdout.print(shown)
