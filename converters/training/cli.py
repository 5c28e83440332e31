"""The verb `edgert fit`."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from edgert.cli import JsonFlag

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add `fit` to the `edgert` command."""
    app.command(name="fit")(_fit)


def _fit(
    model: Annotated[Path, typer.Argument(help="A float32 model (.onnx).")],
    train: Annotated[Path, typer.Option(help="Samples (.npz) with labels to learn from.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The trained model to write (.onnx).")],
    evaluate: Annotated[Path | None, typer.Option(help="Samples (.npz) with labels to measure accuracy on.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the samples.")] = 10,
    learning_rate: Annotated[float, typer.Option(help="Of stochastic gradient descent.")] = 0.02,
    momentum: Annotated[float, typer.Option(help="Share of the last step that goes on, 0 to below 1.")] = 0.9,
    batch_size: Annotated[int, typer.Option(min=1, max=65536, help="Samples per step.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of the samples.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Train a model on this machine with the loop that devices use, and write it with its new weights."""
    from converters import graph
    from converters.training import fit
    from edgert import cli, samples
    from edgert.files import write_durable

    begun = time.monotonic()
    local = _local(epochs, learning_rate, momentum, seed)
    learned, measured = samples.load(train), None if evaluate is None else samples.load(evaluate)
    with cli.progress(f"fit {model.name}") as advance:
        fitted = fit.fit(_imported(model), learned, local, batch_size=batch_size, evaluate=measured, progress=advance)
    write_durable(output, graph.serialize(fitted.model))
    result = {
        "model": str(output),
        "epochs": epochs,
        "loss": fitted.trained.losses[-1],
        "accuracy": fitted.trained.accuracy,
        "accuracy_evaluate": fitted.accuracy_evaluate,
        "examples": fitted.trained.examples,
        "seconds": round(time.monotonic() - begun, 3),
    }
    if not cli.emit(result, as_json):
        _show(result)


def _imported(model: Path) -> Any:
    import tempfile

    from converters import isolate

    with tempfile.TemporaryDirectory(prefix="edgert-fit-") as folder:
        return isolate.prepare(model, Path(folder)).imported


def _local(epochs: int, learning_rate: float, momentum: float, seed: int) -> Any:
    from pydantic import ValidationError

    from edgert.config import explain
    from edgert.errors import UsageError
    from edgert.federated.plan import LocalTraining

    try:
        return LocalTraining(epochs=epochs, learning_rate=learning_rate, momentum=momentum, seed=seed)
    except ValidationError as e:
        raise UsageError(f"the options do not make sense: {explain(e)}", hint="see `edgert fit --help`") from e


def _show(result: dict[str, Any]) -> None:
    from edgert.cli import stdout

    stdout.print(
        f"{result['examples']} samples, {result['epochs']} epochs: loss {result['loss']:.4f}, "
        f"accuracy {100 * result['accuracy']:.2f} % while learning",
        markup=False,
    )
    if result["accuracy_evaluate"] is not None:
        stdout.print(f"accuracy {100 * result['accuracy_evaluate']:.2f} % on the evaluation samples", markup=False)
    stdout.print(f"wrote {result['model']} after {result['seconds']:.1f} s", markup=False)
