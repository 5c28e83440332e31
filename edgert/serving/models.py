"""Which version of each model answers: a table without I/O.

::

    loading --answer()--> answering --answer() of a newer one, remove()--> draining --last give()--> gone
       \\--fail()--> failed (or, when an older version answers, as before)

A request takes the version that answers now and gives it back; whoever gives back a draining version last is told to
release it, so a swap never waits and never cuts a request.
"""

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from edgert.errors import ServeError, UsageError

__all__ = ["Served", "Table"]

Value = TypeVar("Value")


@dataclass(slots=True, eq=False)
class Served(Generic[Value]):
    """One version of one model.

    Args:
        value: what answers.
        in_flight: requests that hold it.
        draining: whether another version took its place.
    """

    model: str
    version: int
    value: Value
    in_flight: int = 0
    draining: bool = False


@dataclass(slots=True)
class Table(Generic[Value]):
    """Models by name: what answers, what is being loaded, what could not be loaded."""

    answering: dict[str, Served[Value]] = field(default_factory=dict)
    loading: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)

    def begin(self, model: str) -> None:
        """A version of `model` is being loaded."""
        self.loading.add(model)

    def fail(self, model: str, reason: str) -> None:
        """The version that was being loaded will not answer; an older one goes on."""
        self.loading.discard(model)
        if model not in self.answering:
            self.failed[model] = reason

    def answer(self, served: Served[Value]) -> Served[Value] | None:
        """Let a version answer from now on.

        Returns:
            The version it replaces if nobody uses that one: release it now. Otherwise `give` will tell.
        """
        self.loading.discard(served.model)
        self.failed.pop(served.model, None)
        old = self.answering.get(served.model)
        self.answering[served.model] = served
        return _retire(old)

    def remove(self, model: str) -> Served[Value] | None:
        """Forget a model; returns what must be released now, as `answer` does."""
        self.failed.pop(model, None)
        return _retire(self.answering.pop(model, None))

    def find(self, model: str, version: str | None = None) -> Served[Value]:
        """The version that answers.

        Args:
            version: as in the URL, or None for whichever answers.

        Raises:
            UsageError: there is no such model or version.
            ServeError: it is being loaded, or could not be loaded.
        """
        served = self.answering.get(model)
        if served is not None and version in (None, str(served.version)):
            return served
        if served is not None:
            raise UsageError(
                f"model {model} has no version {str(version)[:40]!r} here", hint=f"version {served.version} answers"
            )
        if model in self.loading:
            raise ServeError(f"model {model} is being loaded", hint="ask again in a moment")
        if model in self.failed:
            raise ServeError(f"model {model} could not be loaded: {self.failed[model]}", hint="load another version")
        known = ", ".join(sorted(self.answering)) or "none"
        raise UsageError(f"there is no model {model[:80]!r} here", hint=f"known: {known}")

    def take(self, model: str, version: str | None = None) -> Served[Value]:
        """`find`, held until it is given back."""
        served = self.find(model, version)
        served.in_flight += 1
        return served

    def give(self, served: Served[Value]) -> bool:
        """Give a taken version back; True when it was the last use of a draining one: release it now."""
        served.in_flight -= 1
        return served.draining and served.in_flight == 0

    def ready(self) -> bool:
        """Whether every known model answers."""
        return not self.failed and self.loading <= self.answering.keys()


def _retire(old: Served[Value] | None) -> Served[Value] | None:
    if old is None:
        return None
    old.draining = True
    return old if old.in_flight == 0 else None
