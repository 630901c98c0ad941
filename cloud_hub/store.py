"""The hub's database behind two calls: `Store.write` and `Store.read`.

One connection writes, in a thread of its own: SQLite up to 3.51.2 can corrupt a write-ahead log that two connections
write and checkpoint at once, and one writer needs no locks. Writes that wait together are committed together, each in
a savepoint of its own, so that a fleet's messages cost one sync and not one each. A write that returned is on the disk.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import sqlalchemy as sa

from skerry.errors import StorageError

T = TypeVar("T")

_MOST_TOGETHER = 512
_READERS = 4
_BUSY_S = 10.0


@dataclass(frozen=True)
class _Write:
    work: Callable[[sa.Connection], Any]
    done: Future[Any]


class Store:
    """An SQLite file. Use as a context manager: leaving it commits what waits and ends the writer.

    Args:
        path: the file; made if it is not there.
        tables: what it must hold; made if they are not there.
    """

    def __init__(self, path: Path, tables: sa.MetaData) -> None:
        self._path, self._tables = path, tables
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self._opened: Future[None] = Future()
        self._closed = False
        self._closing = threading.Lock()
        self.commits = 0

    def __enter__(self) -> Self:
        """Raises `StorageError` if the file cannot be opened, or is no database."""
        self._thread.start()
        self._opened.result()
        self._readers = _engine(f"file:{self._path}?mode=ro&uri=true", _READERS, ["PRAGMA query_only=ON"])
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        with self._closing:
            self._closed = True
            self._queue.put(None)
        self._thread.join()
        self._readers.dispose()

    def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Runs ``work`` in a transaction, and returns what it returned once that is on the disk. Waits for it.

        What ``work`` raises undoes it, and it alone, and is raised here.

        Raises:
            StorageError: the database refused, or is closed.
        """
        done: Future[T] = Future()
        with self._closing:
            if self._closed:
                raise StorageError(f"{self._path} is closed; nothing was written")
            self._queue.put(_Write(work, done))
        return done.result()

    def read(self, work: Callable[[sa.Connection], T]) -> T:
        """Runs ``work`` on a connection that cannot write; it sees one state of the database, and waits for no writer.

        Raises:
            StorageError: the database refused.
        """
        try:
            with self._readers.begin() as connection:
                return work(connection)
        except sa.exc.DBAPIError as exc:
            raise StorageError(f"{self._path} cannot be read: {exc.orig}") from exc

    # The writer's thread

    def _run(self) -> None:
        try:
            engine = _engine(str(self._path), 1, ["PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL"])
            self._tables.create_all(engine)
            connection = engine.connect()
        except sa.exc.DBAPIError as exc:
            self._opened.set_exception(StorageError(f"{self._path} cannot be opened: {exc.orig}"))
            return
        self._opened.set_result(None)
        with connection:
            while writes := self._take():
                self._commit(connection, writes)
        engine.dispose()

    def _take(self) -> list[_Write]:
        """The writes that wait, at least one; none once the store is closed and they are done."""
        first = self._queue.get()
        if first is None:
            return []
        writes = [first]
        while len(writes) < _MOST_TOGETHER and not self._queue.empty():
            if (more := self._queue.get()) is None:
                self._queue.put(None)  # these first
                break
            writes.append(more)
        return writes

    def _commit(self, connection: sa.Connection, writes: Sequence[_Write]) -> None:
        try:
            with connection.begin():
                answers = [(write, _attempt(connection, write)) for write in writes]
        except sa.exc.DBAPIError as exc:
            error = StorageError(f"{self._path} cannot be written: {exc.orig}; nothing was changed")
            for write in writes:
                if not write.done.done():
                    write.done.set_exception(error)
            return
        self.commits += 1
        for write, answer in answers:
            if not write.done.done():
                write.done.set_result(answer)


def _attempt(connection: sa.Connection, write: _Write) -> Any:
    try:
        with connection.begin_nested():
            return write.work(connection)
    except Exception as exc:  # noqa: BLE001 - it is raised where the write was asked for
        write.done.set_exception(exc)
        return None


def _engine(database: str, connections: int, pragmas: Sequence[str]) -> sa.Engine:
    engine = sa.create_engine(
        f"sqlite:///{database}",
        pool_size=connections,
        max_overflow=0,
        poolclass=sa.pool.QueuePool,
        connect_args={"check_same_thread": False, "timeout": _BUSY_S},
    )

    @sa.event.listens_for(engine, "connect")
    def _prepare(raw: Any, _record: object) -> None:
        raw.isolation_level = None  # the driver's own BEGIN comes too late, and not before reads
        for pragma in [*pragmas, "PRAGMA foreign_keys=ON"]:
            raw.execute(pragma)

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if connections == 1 else "BEGIN")

    return engine
