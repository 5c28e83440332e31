"""The tree of errors."""

import inspect
import re

import pytest

from edgert import errors


def test_the_drawn_tree_is_the_real_tree() -> None:
    drawn: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^\s{4}((?:\|   )*)(?:\|-- )?(\w+Error)\b", line)
        if found:
            depth = len(found[1]) // 4 + ("|--" in line)
            path[depth:] = [found[2]]
            drawn[found[2]] = path[depth - 1] if depth else "Exception"
    real = {
        name: one.__bases__[0].__name__
        for name, one in vars(errors).items()
        if inspect.isclass(one) and issubclass(one, Exception)
    }
    assert drawn == real


def test_every_error_is_public() -> None:
    real = [name for name, one in vars(errors).items() if inspect.isclass(one)]
    assert sorted(real) == sorted(errors.__all__)


@pytest.mark.parametrize("name", errors.__all__)
def test_an_error_carries_its_message_and_its_hint(name: str) -> None:
    error = getattr(errors, name)("what happened", hint="what to do")
    assert (str(error), error.message, error.hint) == ("what happened", "what happened", "what to do")
