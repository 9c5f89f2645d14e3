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
from typing import Final, TypeVar

import msgspec
from msgspec.structs import replace

from broker.core.errors import BrokerError, Reason
from broker.core.model import Ensemble, NodeSet, RequestRecord, Task, Workspace
from broker.store.base import Commit, Row, Stored, StoreProblem, Table

log = logging.getLogger(__name__)

T = TypeVar("T")

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
    # Rows in the order they came: what is written together lies together, so that a commit writes few pages.
    "".join(
        f"""
        CREATE TABLE moved (id INTEGER PRIMARY KEY, record TEXT NOT NULL);
        INSERT INTO moved (record) SELECT record FROM {table};
        DROP TABLE {table};
        ALTER TABLE moved RENAME TO {table};
        """
        for table in ("workspaces", "tasks", "requests")
    )
    + """
    CREATE TABLE moved (id INTEGER PRIMARY KEY, key TEXT NOT NULL, record TEXT NOT NULL);
    INSERT INTO moved (key, record) SELECT key, record FROM settings;
    DROP TABLE settings;
    ALTER TABLE moved RENAME TO settings;
    """,
    """
    CREATE TABLE ensembles (id INTEGER PRIMARY KEY, record TEXT NOT NULL);
    """,
)
"""Schema steps; step N brings a file from version N to N + 1. Append only."""

_workspace = msgspec.json.Decoder(Workspace).decode
_task = msgspec.json.Decoder(Task).decode
_request = msgspec.json.Decoder(RequestRecord).decode
_ensemble = msgspec.json.Decoder(Ensemble).decode
_encode = msgspec.json.Encoder().encode


class _Alike:
    """Reads workspaces so that node sets of the same content are the very same value: most ask for a shape that others
    asked for, and a hundred thousand copies of it cost more memory than all else of them."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[NodeSet, ...]] = {}

    def workspace(self, text: str) -> Workspace:
        """The workspace of a record."""
        found = _workspace(text)
        node_sets = self._known.setdefault(_encode(found.node_sets), found.node_sets)
        return replace(found, node_sets=node_sets)


class _Rows:
    """Which row of a table each key's record stands in; settings alone spell out their key."""

    def __init__(self, table: Table) -> None:
        name, keyed = table.value, table is Table.SETTINGS
        self.insert = f"INSERT INTO {name} VALUES (?, ?{', ?' * keyed})"
        self.update = f"UPDATE {name} SET record = ? WHERE id = ?"
        self.delete = f"DELETE FROM {name} WHERE id = ?"
        self.keyed = keyed
        self.ids: dict[Hashable, int] = {}
        self.next_id = 1

    def read(self, key: Hashable, id_: int) -> None:
        """Notes a row that was found. Raises ValueError for the second of one key."""
        if self.ids.setdefault(key, id_) != id_:
            raise ValueError(f"two records of {key}")
        self.next_id = max(self.next_id, id_ + 1)


class _Batch:
    """What one commit does to one table."""

    def __init__(self, rows: _Rows) -> None:
        self._rows = rows
        self._inserted: list[tuple[object, ...]] = []
        self._updated: list[tuple[str, int]] = []
        self._deleted: list[tuple[int]] = []
        self._new: dict[Hashable, int] = {}
        self._gone: list[Hashable] = []

    def add(self, key: Hashable, record: object | None) -> None:
        """Takes one record in; None removes the one there is."""
        known = self._rows.ids.get(key)
        if record is None:
            if known is not None:
                self._deleted.append((known,))
                self._gone.append(key)
            return
        text = record if isinstance(record, str) else _encode(record).decode()
        if known is not None:
            self._updated.append((text, known))
            return
        id_ = self._new[key] = self._rows.next_id + len(self._new)
        self._inserted.append((id_, key, text) if self._rows.keyed else (id_, text))

    def write(self, db: sqlite3.Connection) -> None:
        """Hands all of it to SQLite."""
        if self._inserted:
            db.executemany(self._rows.insert, self._inserted)
        if self._updated:
            db.executemany(self._rows.update, self._updated)
        if self._deleted:
            db.executemany(self._rows.delete, self._deleted)

    def committed(self) -> None:
        """It is in the file."""
        self._rows.ids.update(self._new)
        self._rows.next_id += len(self._new)
        for key in self._gone:
            del self._rows.ids[key]


class SqliteStore:
    """One state file. Used from the thread of one event loop only."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.on_failure: Callable[[], None] | None = None
        self.commits = 0  # transactions that were made durable, each by one fsync
        self._pending: dict[tuple[Table, Hashable], Row] = {}
        self._commit: Commit | None = None
        self._timer: asyncio.Handle | None = None
        self._rows = {table: _Rows(table) for table in Table}
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
                workspaces=self._read(Table.WORKSPACES, _Alike().workspace, lambda workspace: workspace.uid),
                tasks=self._read(Table.TASKS, _task, lambda task: task.key),
                requests=self._read(Table.REQUESTS, _request, lambda request: request.key),
                settings=self._settings(),
                ensembles=self._read(Table.ENSEMBLES, _ensemble, lambda ensemble: ensemble.uid),
            )
        except (sqlite3.Error, msgspec.DecodeError, ValueError) as error:
            raise StoreProblem(f"{self.path} cannot be read: {error}; restore a copy of it") from error

    def _read(self, table: Table, decode: Callable[[str], T], key: Callable[[T], Hashable]) -> list[T]:
        found = []
        for id_, text in self._db.execute(f"SELECT id, record FROM {table.value} ORDER BY id"):
            found.append(record := decode(text))
            self._rows[table].read(key(record), id_)
        return found

    def _settings(self) -> dict[str, str]:
        found = {}
        for id_, key, value in self._db.execute("SELECT id, key, record FROM settings"):
            self._rows[Table.SETTINGS].read(key, id_)
            found[key] = value
        return found

    def submit(self, rows: Sequence[Row], *, alone: bool) -> asyncio.Future[None]:
        """Takes rows for the next commit; see the port."""
        loop = asyncio.get_running_loop()
        for row in rows:
            self._pending[row.table, row.key] = row
        if self._commit is None:
            self._commit = Commit(loop=loop)
        if alone:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_soon(self.flush)
        elif self._timer is None:
            self._timer = loop.call_later(GROUP_WINDOW, self.flush)
        return self._commit

    def flush(self) -> None:
        """Commits all that is pending, in one transaction."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        rows, self._pending = list(self._pending.values()), {}
        commit, self._commit = self._commit, None
        if commit is None:
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
            commit.set_exception(refusal)
            return
        self.commits += 1
        commit.set_result(None)

    def _write(self, rows: Sequence[Row]) -> None:
        batches = {table: _Batch(rows) for table, rows in self._rows.items()}
        for row in rows:
            batches[row.table].add(row.key, row.record)
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for batch in batches.values():
                batch.write(self._db)
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        for batch in batches.values():
            batch.committed()

    def close(self) -> None:
        """Commits what is pending and lets go of the file."""
        self.flush()
        self._db.close()
        os.close(self._lock_file)
