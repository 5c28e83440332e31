"""The `edgert` command: the core's own verbs, and those that the installed applications add.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused for safety. Results go to standard output (``--json``: one JSON
object), everything else to standard error. An error is one line ``error:`` and, where there is advice, one ``hint:``.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from typing import Annotated, Any, Protocol

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from edgert import __version__
from edgert.errors import EdgeRTError, RefusedError, UsageError

__all__ = ["JsonFlag", "app", "emit", "main", "progress", "stderr", "stdout"]

stdout = Console(soft_wrap=True, highlight=False)
stderr = Console(stderr=True, soft_wrap=True, highlight=False)

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


@contextmanager
def progress(text: str, total: float | None = None) -> Iterator[Advance]:
    """A progress bar with time left on standard error (a spinner while `total` is unknown)."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
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
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in arguments
    try:
        _register_applications()
        code = app(args=arguments, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except EdgeRTError as e:
        return _report(e.message, e.hint, _exit_code(e), as_json)
    except typer.Exit as e:
        return e.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return _report("stopped", "", 130, as_json)
    except BrokenPipeError:
        return 1
    except Exception as e:
        usage = getattr(e, "format_message", None)
        if usage is None:
            raise
        return _report(usage(), "see `edgert --help` or the verb's own --help", 2, as_json)


def _register_applications() -> None:
    for entry in sorted(metadata.entry_points(group="edgert.commands"), key=lambda entry: entry.name):
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


if __name__ == "__main__":
    sys.exit(main())
