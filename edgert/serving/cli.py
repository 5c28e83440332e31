"""`edgert serve`: the inference endpoint without an agent."""

import asyncio
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from edgert.bundle import Bundle
from edgert.cli import JsonFlag, emit, stdout
from edgert.errors import RefusedError, UsageError

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the verb `serve` to the `edgert` command."""
    app.command("serve")(_serve)


def _serve(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="Bundle files (.edgert).")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes any that is free.", min=0, max=65535)] = 8080,
    insecure: Annotated[bool, typer.Option("--insecure", help="Allow an address that other machines reach.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Answer the Open Inference Protocol v2 from bundles, until Ctrl-C."""
    from edgert import logs
    from edgert.serving.worker import is_loopback

    if not insecure and not is_loopback(host):
        raise RefusedError(
            f"{host} can be reached by other machines, and nothing asks who they are",
            hint="leave --host out, or add --insecure when the network is trusted",
        )
    logs.setup("WARNING")
    opened = _open(bundles)
    with tempfile.TemporaryDirectory(prefix="edgert-serve-") as folder:
        asyncio.run(_answer(opened, host, port, Path(folder), as_json))


def _open(paths: Sequence[Path]) -> list[Bundle]:
    opened: dict[str, Bundle] = {}
    for path in paths:
        bundle = Bundle.open(path)
        if bundle.manifest.model in opened:
            raise UsageError(f"two of the bundles hold model {bundle.manifest.model}", hint="serve one version of it")
        opened[bundle.manifest.model] = bundle
    return list(opened.values())


async def _answer(bundles: Sequence[Bundle], host: str, port: int, folder: Path, as_json: bool) -> None:
    from edgert.serving.worker import Worker
    from edgert.store import Store

    store = Store(folder / "store")
    for bundle in bundles:
        store.ingest(bundle)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    worker = Worker(host=host, port=port, store=store.root)
    await worker.start()
    supervision = asyncio.create_task(worker.run())
    try:
        for bundle in bundles:
            await worker.load(bundle.manifest.model, 1, bundle.digest)
        _announce(worker.endpoint, bundles, folder, as_json)
        await stop.wait()
    finally:
        supervision.cancel()
        await asyncio.wait({supervision})
        await worker.stop()


def _announce(endpoint: str, bundles: Sequence[Bundle], folder: Path, as_json: bool) -> None:
    from edgert.serving.example import curl, golden_inputs, request_body

    if emit({"url": endpoint, "docs": f"{endpoint}/docs", "models": [b.manifest.model for b in bundles]}, as_json):
        sys.stdout.flush()
        return
    stdout.print(f"{endpoint} answers; try it at {endpoint}/docs, stop with Ctrl-C")
    for bundle in bundles:
        body = request_body(golden_inputs(bundle))
        stdout.print(curl(endpoint, bundle.manifest.model, body, folder=folder), markup=False)
    sys.stdout.flush()
