"""The `edgert` command: the core's own verbs, and those that the installed applications add.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused for safety. Results go to standard output (``--json``: one JSON
object), everything else to standard error. An error is one line ``error:`` and, where there is advice, one ``hint:``.
"""

import json
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from edgert import __version__, plugins
from edgert.errors import EdgeRTError, RefusedError, UsageError

__all__ = ["JsonFlag", "app", "emit", "main", "progress", "stderr", "stdout", "table"]

stdout = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
stderr = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]

app = typer.Typer(
    name="edgert",
    help="Convert, sign, ship, serve and retrain models on edge devices.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Advance(Protocol):
    """Tells a progress bar how far the work is."""

    def __call__(self, done: float, total: float | None = None, text: str | None = None) -> None: ...


def emit(result: dict[str, Any], as_json: bool) -> bool:
    """Print `result` as one JSON object when asked to; returns whether it did."""
    if as_json:
        sys.stdout.write(json.dumps(result, default=str) + "\n")
    return as_json


def table(*headings: str, title: str = "", right: Sequence[str] = ("bytes",)) -> Table:
    """An empty table in the one style of the command line.

    Args:
        right: headings of columns of numbers.
    """
    made = Table(title=title or None, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        made.add_column(heading, justify="right" if heading in right else "left", overflow="fold")
    return made


@contextmanager
def progress(text: str, total: float | None = None) -> Iterator[Advance]:
    """A progress bar with time left on standard error (a spinner while `total` is unknown)."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task(text, total=total)

        def advance(done: float, total: float | None = None, text: str | None = None) -> None:
            bar.update(task, completed=done, total=total, description=text)

        yield advance


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    if arguments is None:
        for number in (signal.SIGTERM, signal.SIGHUP):  # whatever ends us, temporary folders and children go first
            signal.signal(number, _interrupted)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in arguments
    try:
        _register_applications()
        code = app(args=arguments, prog_name="edgert", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except EdgeRTError as e:
        return _report(e.message, e.hint, _exit_code(e), as_json)
    except typer.Exit as e:
        return _report("stopped", "", 130, as_json) if e.exit_code == 130 else e.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return _report("stopped", "", 130, as_json)
    except BrokenPipeError:
        sys.stdout = None  # nobody reads it any more: let the interpreter not try to flush it
        return 1
    except ModuleNotFoundError as e:
        hint = "install the extra that brings it (convert, ota, agent, litert or demo); `edgert doctor` tells"
        return _report(f"this installation lacks the module {e.name}", hint, 1, as_json)
    except OSError as e:
        what = f"{e.filename}: {e.strerror}" if e.filename else str(e)
        return _report(what, "check the path, its permissions and the room on the disk", 1, as_json)
    except Exception as e:
        usage = getattr(e, "format_message", None)
        if usage is None:
            raise
        if type(e).__name__ == "NoArgsIsHelpError":  # a group without a verb: its help, and nothing to complain about
            sys.stdout.write(usage() + "\n")
            return 2
        verb = getattr(getattr(e, "ctx", None), "command_path", "edgert")
        return _report(usage(), f"see `{verb} --help`", 2, as_json)


def _interrupted(number: int, frame: object) -> None:
    raise KeyboardInterrupt


@cache
def _register_applications() -> None:
    for entry in plugins.entry_points("edgert.commands"):
        try:
            register = entry.load()
        except ModuleNotFoundError:
            continue  # installed without that application's extra: its verbs are not there
        register(app)


def _exit_code(error: EdgeRTError) -> int:
    if isinstance(error, RefusedError):
        return 3
    return 2 if isinstance(error, UsageError) else 1


def _report(message: str, hint: str, code: int, as_json: bool) -> int:
    one_line = " ".join(message.split())
    if as_json:
        sys.stdout.write(json.dumps({"error": one_line, "hint": hint, "exit_code": code}) + "\n")
    sys.stderr.write(f"error: {one_line}\n")
    if hint:
        sys.stderr.write(f"hint: {' '.join(hint.split())}\n")
    return code


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        sys.stdout.write(f"edgert {__version__}\n")
        raise typer.Exit


BundleFile = Annotated[Path, typer.Argument(metavar="B.edgert", help="A bundle file.", show_default=False)]


@app.command("inspect")
def _inspect(file: BundleFile, as_json: JsonFlag = False) -> None:
    """What is inside a bundle, for whom, how it is checked, where it came from."""
    from edgert.bundle import Bundle
    from edgert.values import show_shape

    bundle = Bundle.open(file)
    manifest = bundle.manifest
    size = file.stat().st_size
    found = {
        "file": str(file),
        "digest": bundle.digest,
        "size_bytes": size,
        "manifest": manifest.model_dump(mode="json"),
    }
    if emit(found, as_json):
        return
    stdout.print(f"{manifest.model} for {manifest.profile}, {size:,} bytes, {bundle.digest}", markup=False)
    tensors = table("", "name", "type", "shape", "golden tolerance")
    for kind, group in (("input", manifest.inputs), ("output", manifest.outputs)):
        for tensor in group:
            allowed = manifest.golden.tolerance.get(tensor.name) if kind == "output" else None
            tensors.add_row(
                kind, tensor.name, tensor.dtype, show_shape(tensor.shape), "" if allowed is None else f"{allowed:g}"
            )
    artifacts = table("role", "format", "precision", "bytes", "file", "digest")
    for part in manifest.artifacts:
        artifacts.add_row(part.role, part.format, part.precision, f"{part.size_bytes:,}", part.file, part.digest[:19])
    origin = table("from", "")
    origin.add_row("golden vectors", str(manifest.golden.count))
    if manifest.training is not None:
        count = len(manifest.training.parameters)
        origin.add_row("training", f"{count} parameters, batches of {manifest.training.batch_size}")
    for name in ("source", "recipe", "weights"):
        origin.add_row(name, getattr(manifest.provenance, name) or "as in the source")
    origin.add_row("tools", ", ".join(f"{name} {version}" for name, version in manifest.provenance.tools.items()))
    for shown in (tensors, artifacts, origin):
        stdout.print(shown)


@app.command("unpack")
def _unpack(
    file: BundleFile,
    folder: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="An empty folder, or a new one.")],
    as_json: JsonFlag = False,
) -> None:
    """Write each artifact of a bundle to DIR/<role>/<file>, and its manifest to DIR/manifest.json."""
    from edgert.bundle import Bundle

    written = [str(path) for path in Bundle.open(file).unpack(folder)]
    if not emit({"files": written}, as_json):
        for path in written:
            stdout.print(path, markup=False)


@app.command("infer")
def _infer(
    file: BundleFile,
    samples_file: Annotated[Path, typer.Option("--input", "-i", metavar="X.npz", help="Samples, labels if known.")],
    outputs: Annotated[Path | None, typer.Option("-o", "--output", metavar="Y.npz", help="For the answers.")] = None,
    timeout_s: Annotated[float, typer.Option("--timeout-s", min=1, help="Give up after that.")] = 600,
    as_json: JsonFlag = False,
) -> None:
    """Run a bundle's model over samples, in a child process; with labels, say how often it is right."""
    import tempfile

    from edgert import samples, trial
    from edgert.bundle import Bundle
    from edgert.errors import TrialError

    manifest = Bundle.open(file).manifest
    given = samples.load(samples_file)
    next(given.feeds([tensor.spec() for tensor in manifest.inputs]))  # complains here, where the hint is not lost
    with tempfile.TemporaryDirectory(prefix="edgert-") as folder, progress(f"infer {manifest.model}"):
        verdict = trial.infer(file.absolute(), samples_file.absolute(), Path(folder), timeout_s=timeout_s)
        if not verdict.passed:
            raise TrialError(f"{manifest.model}: {verdict.reason}", hint="`edgert doctor` says what this machine has")
        answers = samples.load_arrays(Path(folder) / "bundle.npz")
    if outputs is not None:
        samples.save(outputs, answers)
    precisions = {part.file: part.precision for part in manifest.artifacts if part.role == "infer"}
    result: dict[str, Any] = {
        "model": manifest.model,
        "samples": len(given),
        "accuracy": _accuracy(answers, manifest.outputs[0].name, given.labels),
        "latency_ms": verdict.latency_ms,
        "cpu_ms": verdict.cpu_ms,
        "backend": verdict.backend,
        "version": verdict.version,
        "precision": precisions.get(verdict.file, ""),
        "nodes": verdict.nodes,
        "output": None if outputs is None else str(outputs),
    }
    if emit(result, as_json):
        return
    accuracy = "" if result["accuracy"] is None else f", top-1 {100 * result['accuracy']:.2f} %"
    speed = f"{verdict.latency_ms:.3f} ms each" if verdict.latency_ms is not None else "not timed"
    stdout.print(f"{manifest.model}: {len(given)} samples{accuracy}, {speed}", markup=False)
    nodes = ", ".join(f"{count} nodes on {name}" for name, count in verdict.nodes.items())
    stdout.print(f"{result['precision']} artifact on {verdict.backend} {verdict.version} ({nodes})", markup=False)


def _accuracy(answers: Mapping[str, NDArray[Any]], output: str, labels: NDArray[Any] | None) -> float | None:
    """Top-1 of the first output, where labels are classes; None where nothing can be said."""
    from edgert.accuracy import top1

    return top1(answers[output], labels) if labels is not None and labels.dtype.kind in "iu" else None


profiles_app = typer.Typer(help="What kinds of boxes can do.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(profiles_app, name="profiles")


@profiles_app.command("list")
def _profiles_list(as_json: JsonFlag = False) -> None:
    """The profiles that EdgeRT brings."""
    from edgert import profiles

    found = [profiles.load(name) for name in profiles.names()]
    if not emit({"profiles": [profile.model_dump(mode="json") for profile in found]}, as_json):
        shown = table("profile", "arch", "backends", "precisions", "what it is")
        for profile in found:
            words = (profile.name, profile.arch, ", ".join(profile.backends), ", ".join(profile.precisions))
            shown.add_row(*words, profile.description)
        stdout.print(shown)


@profiles_app.command("show")
def _profiles_show(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE.toml", show_default=False)], as_json: JsonFlag = False
) -> None:
    """One profile, with everything it extends."""
    from edgert import profiles

    profile = profiles.load(name)
    keys = profile.model_dump(mode="json", exclude_none=True) | {"reduce_range": profile.reduce_range}
    if not emit(keys, as_json):
        rows = table("key", "value")
        for key, value in keys.items():
            for name, part in value.items() if isinstance(value, dict) else [("", value)]:
                rows.add_row(f"{key} {name}".strip(), _words(part))
        stdout.print(rows)


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(part)}" for key, part in value.items())
    return "; ".join(_words(part) for part in value) if isinstance(value, list) else str(value)


@profiles_app.command("match")
def _profiles_match(as_json: JsonFlag = False) -> None:
    """Which profiles fit this machine, the most specific first."""
    from edgert import host, profiles

    machine = host.detect()
    found = profiles.match(machine)
    best = next((row.name for row in found if row.fits), None)
    rows = [row.model_dump(mode="json") for row in found]
    if not emit({"best": best, "arch": machine.arch, "vnni": machine.vnni, "profiles": rows}, as_json):
        shown = table("profile", "fits", "because")
        for row in found:
            shown.add_row(row.name, "yes" if row.fits else "no", "; ".join(row.reasons))
        stdout.print(shown)


@app.command("doctor")
def _doctor(as_json: JsonFlag = False) -> None:
    """Whether this installation can work, and what it lacks."""
    from edgert import doctor

    with progress("look"):
        checks = list(doctor.examine())
    healthy = all(check.ok or not check.needed for check in checks)
    if not emit({"healthy": healthy, "checks": [asdict(check) for check in checks]}, as_json):
        shown = table("check", "", "found")
        for check in checks:
            mark = "ok" if check.ok else ("FAILED" if check.needed else "-")
            shown.add_row(check.name, mark, check.found + (f"\n{check.hint}" if check.hint and not check.ok else ""))
        stdout.print(shown)
    if not healthy:
        raise typer.Exit(1)


if __name__ == "__main__":
    sys.exit(main())
