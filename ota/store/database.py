"""The database file: SQLite in WAL mode, shared by the server and every command-line process."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, PoolProxiedConnection, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from edgert.errors import StoreError
from ota.store.models import Base

__all__ = ["Database", "Session"]

_BUSY_MS = 15_000


class Database:
    """Transactions on one database file.

    Args:
        path: made, with all tables, when it does not exist; mode 0600.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.exists():
            path.touch(mode=0o600)
        self._engine = _engine(path)
        self._watch: PoolProxiedConnection | None = None
        with _translated(path):
            Base.metadata.create_all(self._engine)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A view of one moment.

        Raises:
            StoreError: the disk failed.
        """
        with _translated(self._path), Session(self._engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction: committed when the block ends, undone when it raises; one writer at a time.

        Raises:
            StoreError: the disk failed, or another process held the database too long.
        """
        engine = self._engine.execution_options(edgert_write=True)
        with _translated(self._path), Session(engine, expire_on_commit=False) as session, session.begin():
            yield session

    def version(self) -> int:
        """A number that changes when anyone else has committed; always asked by the same thread."""
        with _translated(self._path):
            if self._watch is None:
                self._watch = self._engine.raw_connection()
            cursor = self._watch.cursor()
            cursor.execute("PRAGMA data_version")
            (version,) = cursor.fetchone() or (0,)
            cursor.close()
            return int(version)

    def close(self) -> None:
        """Close every connection."""
        if self._watch is not None:
            self._watch.close()
        self._engine.dispose()


def _engine(path: Path) -> Engine:
    engine = create_engine(f"sqlite:///{path}")

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves: the driver would begin too late
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={_BUSY_MS}"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("edgert_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except DBAPIError as e:
        raise StoreError(
            f"the database {path} failed: {e.orig}", hint="check the disk; is another process holding it?"
        ) from e
