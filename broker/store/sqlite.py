"""The store on one SQLite file: WAL, synchronous=FULL, one writer.

Invariants: what a future has confirmed was fsynced; a batch is in the file whole or not at all; one broker at a time
uses a file, by a lock of the operating system that a kill leaves free; a file of a newer version is not touched.

Commits are grouped in the event loop: an fsync costs the same for one change as for a hundred, and a writer thread
costs every change two hand-overs (ADR 002). Records are JSON, so that `sqlite3 broker.db` can read them.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import sqlite3
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from broker.core.errors import BrokerError, Reason
from broker.core.model import RequestRecord, Task, Workspace
from broker.store.base import Row, Stored, StoreProblem, Table

log = logging.getLogger(__name__)

GROUP_WINDOW: Final = 0.002
"""Seconds a commit waits for others to join while several calls are in flight."""

RETRY_AFTER: Final = 2.0
"""Seconds after which a caller may try again when the file could not be written."""

MIGRATIONS: Final = (
    """
    CREATE TABLE workspaces (uid TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE tasks (uid TEXT NOT NULL, node INTEGER NOT NULL, record TEXT NOT NULL,
                        PRIMARY KEY (uid, node)) WITHOUT ROWID;
    CREATE TABLE requests (tenant TEXT NOT NULL, method TEXT NOT NULL, request_id TEXT NOT NULL,
                           record TEXT NOT NULL, PRIMARY KEY (tenant, method, request_id)) WITHOUT ROWID;
    CREATE TABLE settings (key TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID;
    """,
)
"""Schema steps; step N brings a file from version N to N + 1. Append only."""

_workspace = msgspec.json.Decoder(Workspace).decode
_task = msgspec.json.Decoder(Task).decode
_request = msgspec.json.Decoder(RequestRecord).decode
_encode = msgspec.json.Encoder().encode


def _text(record: object) -> str:
    return record if isinstance(record, str) else _encode(record).decode()


_PUT: Final = {
    Table.WORKSPACES: "INSERT INTO workspaces VALUES (?, ?) ON CONFLICT DO UPDATE SET record = excluded.record",
    Table.TASKS: "INSERT INTO tasks VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET record = excluded.record",
    Table.REQUESTS: "INSERT INTO requests VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET record = excluded.record",
    Table.SETTINGS: "INSERT INTO settings VALUES (?, ?) ON CONFLICT DO UPDATE SET record = excluded.record",
}
_REMOVE: Final = {
    Table.WORKSPACES: "DELETE FROM workspaces WHERE uid = ?",
    Table.TASKS: "DELETE FROM tasks WHERE uid = ? AND node = ?",
    Table.REQUESTS: "DELETE FROM requests WHERE tenant = ? AND method = ? AND request_id = ?",
    Table.SETTINGS: "DELETE FROM settings WHERE key = ?",
}


class SqliteStore:
    """One state file. Used from the thread of one event loop only."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.on_failure: Callable[[], None] | None = None
        self.commits = 0  # transactions that were made durable, each by one fsync
        self._pending: dict[tuple[Table, Hashable], Row] = {}
        self._waiting: list[asyncio.Future[None]] = []
        self._timer: asyncio.Handle | None = None
        self._lock_file = self._take_lock()
        try:
            self._db = self._open()
        except BaseException:
            os.close(self._lock_file)
            raise

    def _take_lock(self) -> int:
        lock_path = self.path.with_name(self.path.name + ".lock")
        try:
            descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreProblem(f"cannot create {lock_path}: {error.strerror}; choose another server.state") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise StoreProblem(
                f"{self.path} is in use by another broker (process {holder or 'unknown'}); "
                "stop that one first, or give this one its own server.state"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return descriptor

    def _open(self) -> sqlite3.Connection:
        if self.path.exists() and not self.path.stat().st_size:
            raise StoreProblem(
                f"{self.path} is there and empty, which no broker leaves behind; restore a copy of it, or remove it "
                "to begin anew"
            )
        try:
            db = sqlite3.connect(self.path, isolation_level=None)
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > len(MIGRATIONS):
                db.close()
                raise StoreProblem(
                    f"{self.path} was written by a newer broker (schema {version}, this one knows {len(MIGRATIONS)}); "
                    "nothing was changed: run the newer release, or restore an older copy of the file"
                )
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA busy_timeout = 1000")
            for step in range(version, len(MIGRATIONS)):
                db.executescript(f"BEGIN; {MIGRATIONS[step]} PRAGMA user_version = {step + 1}; COMMIT;")
            os.chmod(self.path, 0o600)
        except (sqlite3.Error, OSError) as error:
            raise StoreProblem(
                f"{self.path} cannot be used as a state file: {error}; restore a copy, or name another server.state"
            ) from error
        return db

    def pragma(self, name: str) -> object:
        """A PRAGMA of the running connection, for checks."""
        return self._db.execute(f"PRAGMA {name}").fetchone()[0]

    def load(self) -> Stored:
        """Reads everything. Raises StoreProblem for a damaged file."""
        try:
            damage = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if damage != "ok":
                raise StoreProblem(f"{self.path} is damaged ({damage}); restore a copy of it")
            return Stored(
                workspaces=[_workspace(row[0]) for row in self._db.execute("SELECT record FROM workspaces")],
                tasks=[_task(row[0]) for row in self._db.execute("SELECT record FROM tasks")],
                requests=[_request(row[0]) for row in self._db.execute("SELECT record FROM requests")],
                settings=dict(self._db.execute("SELECT key, record FROM settings").fetchall()),
            )
        except (sqlite3.Error, msgspec.DecodeError) as error:
            raise StoreProblem(f"{self.path} cannot be read: {error}; restore a copy of it") from error

    def submit(self, rows: Sequence[Row], *, alone: bool) -> asyncio.Future[None]:
        """Takes rows for the next commit; see the port."""
        loop = asyncio.get_running_loop()
        for row in rows:
            self._pending[row.table, row.key] = row
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.append(future)
        if alone:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_soon(self.flush)
        elif self._timer is None:
            self._timer = loop.call_later(GROUP_WINDOW, self.flush)
        return future

    def flush(self) -> None:
        """Commits all that is pending, in one transaction."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        rows, self._pending = list(self._pending.values()), {}
        waiting, self._waiting = self._waiting, []
        if not rows:
            for future in waiting:
                if not future.done():
                    future.set_result(None)
            return
        try:
            self._write(rows)
        except Exception as error:  # whatever it was, nobody may wait for ever for what is lost
            log.error("store=failed path=%s rows=%d error=%s", self.path, len(rows), error)
            if self.on_failure is not None:
                self.on_failure()
            refusal = BrokerError(
                Reason.STORE_UNAVAILABLE,
                f"the broker cannot write its state ({error}); nothing was changed: try again later",
                retry_after=RETRY_AFTER,
            )
            for future in waiting:
                if not future.done():
                    future.set_exception(refusal)
            return
        self.commits += 1
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def _write(self, rows: Sequence[Row]) -> None:
        execute = self._db.execute
        execute("BEGIN IMMEDIATE")
        try:
            for row in rows:
                key = row.key if isinstance(row.key, tuple) else (row.key,)
                if row.record is None:
                    execute(_REMOVE[row.table], key)
                else:
                    execute(_PUT[row.table], (*key, _text(row.record)))
            execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Commits what is pending and lets go of the file."""
        self.flush()
        self._db.close()
        os.close(self._lock_file)
