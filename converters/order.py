"""From what the command line says to a request: a model with options, or a source, which has its own."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from pydantic import ValidationError

from converters.recipe import Recipe
from converters.source import Source, open_source
from converters.stages import Request
from edgert import profiles
from edgert import samples as samples_file
from edgert.config import explain
from edgert.errors import UsageError
from edgert.samples import Samples
from edgert.values import is_name

__all__ = ["Wishes", "request"]


@dataclass(frozen=True, slots=True)
class Wishes:
    """Options of the conversion; None = not given."""

    profile: str | None = None
    name: str | None = None
    calibrate: Path | None = None
    evaluate: Path | None = None
    max_drop: float | None = None
    precision: str | None = None
    train: bool | None = None


@contextmanager
def request(model: Path, wishes: Wishes, *, weights: Path | None = None) -> Iterator[Request]:
    """What to convert; a source's model lies in a temporary file as long as the block runs.

    Raises:
        UsageError: no such profile, a name that cannot be one, or options that contradict the source.
        BundleError: the source is damaged.
        SamplesError: samples cannot be read.
    """
    if model.suffix != ".tar":
        yield _of_model(model, wishes, weights)
        return
    source = open_source(model)
    _check_agreement(source.recipe, wishes, model)
    with tempfile.TemporaryDirectory(prefix="edgert-source-") as scratch:
        yield _of_source(source, Path(scratch), weights)


def _of_model(model: Path, wishes: Wishes, weights: Path | None) -> Request:
    if wishes.profile is None:
        raise UsageError("which kind of box is it for?", hint="give --profile; `edgert profiles list` shows them")
    asked = {"precision": wishes.precision, "max_drop_points": wishes.max_drop, "train": wishes.train}
    given = {key: value for key, value in asked.items() if value is not None}
    profile = profiles.load(wishes.profile)
    recipe = _recipe({"model": _name(model, wishes.name), "profile": profile.name, **given})
    calibrate = None if wishes.calibrate is None else samples_file.load(wishes.calibrate)
    evaluate = None if wishes.evaluate is None else samples_file.load(wishes.evaluate)
    return Request(recipe, profile, model, calibrate, evaluate, weights)


def _recipe(values: dict[str, object]) -> Recipe:
    try:
        return Recipe.model_validate(values)
    except ValidationError as e:
        raise UsageError(f"the options do not make sense: {explain(e)}", hint="see `edgert convert --help`") from e


def _name(model: Path, name: str | None) -> str:
    if name is not None:
        if not is_name(name):
            raise UsageError(f"{name[:80]!r} cannot name a model", hint="lower-case letters, digits, '.', '_' and '-'")
        return name
    made = re.sub(r"[^a-z0-9._-]+", "-", model.stem.lower()).strip("-._")[:63]
    if not is_name(made):
        raise UsageError(f"no name for the model can be made from {model.name!r}", hint="give --name")
    return made


def _check_agreement(recipe: Recipe, wishes: Wishes, path: Path) -> None:
    has = {
        "profile": recipe.profile,
        "name": recipe.model,
        "max_drop": recipe.max_drop_points,
        "precision": recipe.precision,
        "train": recipe.train or None,
    }
    for option in fields(wishes):
        given = getattr(wishes, option.name)
        if given is not None and given != has.get(option.name):
            flag = "--" + option.name.replace("_", "-")
            raise UsageError(
                f"{flag} contradicts {path}: a source holds its own recipe and samples",
                hint=f"leave {flag} out, or convert the model itself again",
            )


def _of_source(source: Source, folder: Path, weights: Path | None) -> Request:
    model = folder / f"{source.recipe.model}.onnx"
    model.write_bytes(source.model)
    samples: list[Samples | None] = []
    for name, content in (("calibrate", source.calibrate), ("evaluate", source.evaluate)):
        path = folder / f"{name}.npz"
        if content is not None:
            path.write_bytes(content)
        samples.append(None if content is None else samples_file.load(path))
    return Request(source.recipe, source.lock.profile, model, samples[0], samples[1], weights)
