"""Verbs of the command line: convert, models, fit."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgert.cli import JsonFlag

if TYPE_CHECKING:
    from converters.stages import Result

__all__ = ["register"]

_PROFILE = "Name of the device profile, see `edgert profiles list`."


def register(app: typer.Typer) -> None:
    """Add the verbs of this application to the `edgert` command."""
    from converters.training import cli as training

    app.command(name="convert")(_convert)
    models = typer.Typer(help="Networks of the model library.", no_args_is_help=True)
    models.command(name="list")(_list)
    models.command(name="make")(_make)
    app.add_typer(models, name="models")
    training.register(app)


def _convert(
    model: Annotated[Path, typer.Argument(help="A model (.onnx), or the source of an earlier bundle (.source.tar).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The bundle to write (.edgert).")],
    profile: Annotated[str | None, typer.Option(help=_PROFILE)] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model; from the file's name by default.")] = None,
    calibrate: Annotated[Path | None, typer.Option(help="Samples (.npz) that quantization observes.")] = None,
    evaluate: Annotated[
        Path | None, typer.Option(help="Samples (.npz), with labels, that accuracy is measured on.")
    ] = None,
    max_drop: Annotated[float | None, typer.Option(help="Points of top-1 that int8 may lose (default 1.0).")] = None,
    precision: Annotated[str | None, typer.Option(help="auto (default), float32 or int8.")] = None,
    train: Annotated[bool, typer.Option("--train", help="Put a training graph into the bundle.")] = False,
    weights: Annotated[Path | None, typer.Option(help="Trained weights (.npz) to put in, by initializer name.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Turn a trained model into a bundle: import, clean up, quantize, measure, package."""
    from converters import order, stages
    from edgert import cli

    wishes = order.Wishes(
        profile=profile,
        name=name,
        calibrate=calibrate,
        evaluate=evaluate,
        max_drop=max_drop,
        precision=precision,
        train=train or None,
    )
    with ExitStack() as stack:
        request = stack.enter_context(order.request(model, wishes, weights=weights))
        advance = stack.enter_context(cli.progress("convert", total=5))
        result = stages.convert(
            request,
            stages.Outputs(output),
            progress=lambda text, done, total: advance(done, total, f"{model.name}: {text}"),
        )
    if not cli.emit(_summary(result), as_json):
        _show(result)


def _summary(result: "Result") -> dict[str, Any]:
    report = result.report
    chosen, plain = report.chosen(), report.plain()
    return {
        "bundle": str(result.outputs.bundle),
        "digest": result.digest,
        "source": str(result.outputs.source),
        "source_digest": result.source_digest,
        "report": str(result.outputs.report),
        "model": report.model,
        "profile": report.profile,
        "precision": chosen.precision,
        "accuracy": chosen.accuracy,
        "accuracy_float": plain.accuracy,
        "size_bytes": chosen.size_bytes,
        "size_float_bytes": plain.size_bytes,
        "latency_ms": chosen.latency_ms,
        "latency_float_ms": plain.latency_ms,
        "samples": report.samples,
    }


def _show(result: "Result") -> None:
    from edgert.cli import stdout, table

    report = result.report
    words = {"top1": "top-1", "cosine": "cosine"}
    numbers = (words[report.metric], "bytes", "ms", "CPU ms")
    rows = table("precision", *numbers, "", "why", title=f"{report.model} for {report.profile}", right=numbers)
    for row in report.candidates:
        accuracy = None if row.accuracy is None else row.accuracy * (100 if report.metric == "top1" else 1)
        rows.add_row(
            row.precision,
            _number(accuracy, ".2f" if report.metric == "top1" else ".5f"),
            _number(row.size_bytes, ",d"),
            _number(row.latency_ms, ".3f"),
            _number(row.cpu_ms, ".3f"),
            "chosen" if row.chosen else "",
            row.reason,
        )
    stdout.print(rows)
    for note in report.notes:
        stdout.print(f"note: {note}", markup=False)
    stdout.print(f"measured on {report.samples} samples ({report.measured_on})", markup=False)
    stdout.print(f"wrote {result.outputs.bundle} ({result.digest})", markup=False)
    stdout.print(f"      {result.outputs.source}", markup=False)
    stdout.print(f"      {result.outputs.report}", markup=False)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _list(as_json: JsonFlag = False) -> None:
    """Networks that `edgert models make` can make."""
    from edgert import cli, plugins

    names = plugins.names("converters.models")
    summaries = {name: plugins.load("converters.models", name).summary for name in names}
    if cli.emit({"models": names, "summaries": summaries}, as_json):
        return
    rows = cli.table("name", "network")
    for name, summary in summaries.items():
        rows.add_row(name, summary.replace("[", r"\["))
    cli.stdout.print(rows)


def _make(
    name: Annotated[str, typer.Argument(help="A name from `edgert models list`.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file to write (.onnx).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the random starting weights.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Make a network of the model library, with seeded random weights."""
    from converters import graph
    from edgert import cli, plugins
    from edgert.files import write_durable
    from edgert.values import digest

    path = output or Path(f"{name}.onnx")
    made = graph.serialize(plugins.load("converters.models", name).make(seed))
    write_durable(path, made)
    if not cli.emit({"model": name, "file": str(path), "digest": digest(made), "seed": seed}, as_json):
        cli.stdout.print(f"wrote {path}", markup=False)
