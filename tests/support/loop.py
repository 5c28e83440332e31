"""Runs one coroutine of a test in a loop of its own, never for ever."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["run"]

_T = TypeVar("_T")


def run(coroutine: Coroutine[Any, Any, _T], limit_s: float = 60.0) -> _T:
    """The result of `coroutine`; TimeoutError when it takes longer than `limit_s` seconds."""

    async def bounded() -> _T:
        async with asyncio.timeout(limit_s):
            return await coroutine

    return asyncio.run(bounded())
