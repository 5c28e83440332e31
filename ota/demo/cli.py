"""The verb `edgert demo` and its table."""

import tempfile
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated

import typer

from edgert.cli import JsonFlag, emit, stderr, stdout, table
from edgert.errors import UsageError
from ota.demo.story import DEVICES, Outcome, tell

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the verb `demo`."""
    app.command(name="demo")(_demo)


def _demo(
    once: Annotated[bool, typer.Option("--once", help="End by itself after the last step.")] = False,
    embedded: Annotated[
        bool,
        typer.Option("--embedded-broker", help="Use amqtt, which checks no certificates, even beside Mosquitto."),
    ] = False,
    folder: Annotated[Path | None, typer.Option(help="Keep everything in this folder.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """The whole loop on this machine: convert, sign, ship, serve, learn, ship again."""
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not an empty folder", hint="give --folder a new one")
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgert-demo-")))
        step = 0

        def say(line: str) -> None:
            nonlocal step
            step += 1
            stderr.print(f"{step:2} {line}")

        outcome = tell(folder.absolute(), say, embedded=embedded, stack=stack)
        if not emit(outcome.as_dict(), as_json):
            _show(outcome, going_on=not once)
        if not once:
            stderr.print("\nThe devices go on answering; stop with Ctrl-C.")
            _wait_for_signal()


def _show(outcome: Outcome, *, going_on: bool) -> None:
    numbers = ("accuracy", "size", "latency")
    title = f"\nOne model, three releases, {len(DEVICES)} devices, {outcome.test_samples} unseen digits"
    shown = table("release", "model", *numbers, title=title, right=numbers)
    shown.add_row("1", "float32", *_row(outcome.accuracy_float, outcome.size_float_bytes, outcome.latency_float_ms))
    shown.add_row("2", "int8", *_row(outcome.accuracy_int8, outcome.size_int8_bytes, outcome.latency_int8_ms))
    shown.add_row("3", "int8, learned together", f"{outcome.accuracy_federated:.1%}", "the same", "the same")
    stdout.print(shown)
    for device in outcome.devices:
        stdout.print(f"{device['id']}  release {device['version']}  {device['phase']}  {device['endpoint']}")
    checked = "with client certificates" if outcome.broker == "mosquitto" else "client certificates NOT checked"
    stdout.print(f"broker {outcome.broker} (TLS, {checked}), {outcome.wire_bytes / 1e6:.2f} MB on the wire")
    stdout.print(f"took {outcome.seconds} s")
    if going_on:
        stdout.print(f"\ntry it:\n  {outcome.curl}\n  {outcome.devices[0]['endpoint']}/docs")


def _row(accuracy: float, size_bytes: int, latency_ms: float) -> tuple[str, str, str]:
    return f"{accuracy:.1%}", f"{size_bytes / 1024:.1f} KiB", f"{latency_ms * 1000:.0f} us"


def _wait_for_signal() -> None:
    with suppress(KeyboardInterrupt):  # also what SIGTERM and a closed terminal raise in this command
        threading.Event().wait()
