"""Verbs of the command line."""

import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the verbs of this application to the `edgert` command."""
