"""Extension points are folders: the file's name is the plug-in's name.

A plug-in file binds a module-level name ``plugin``. `base.py` and names that start with ``_`` are not plug-ins.
Outsiders add to the same list with an entry point whose group is the package's dotted name.
"""

import importlib
import importlib.util
import pkgutil
from functools import cache
from importlib import metadata
from typing import Any

from edgert.errors import UsageError

__all__ = ["entry_points", "load", "names"]


def names(package: str) -> list[str]:
    """The plug-ins of `package`, sorted, without importing any of them.

    Args:
        package: dotted name of the folder, for example ``edgert.backends``.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise UsageError(f"{package} is not a package of plug-ins")
    found = {
        module.name.replace("_", "-")
        for module in pkgutil.iter_modules(spec.submodule_search_locations)
        if module.name != "base" and not module.name.startswith("_")
    }
    return sorted(found | {entry.name for entry in entry_points(package)})


@cache
def entry_points(group: str) -> tuple[metadata.EntryPoint, ...]:
    """What the installed distributions add to a group, sorted by name; read from disk once per process."""
    return tuple(sorted(metadata.entry_points(group=group), key=lambda entry: entry.name))


def load(package: str, name: str) -> Any:
    """The `plugin` object of one file of `package`; imports that file and no other.

    Raises:
        UsageError: there is no such plug-in.
    """
    for entry in entry_points(package):
        if entry.name == name:
            return entry.load()
    if name not in names(package):
        known = ", ".join(names(package)) or "none"
        raise UsageError(f"{package} has no plug-in named {name!r}", hint=f"known: {known}")
    return importlib.import_module(f"{package}.{name.replace('-', '_')}").plugin
