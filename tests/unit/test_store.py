"""The state file: what is confirmed is there, one broker at a time, nothing half-written."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from broker.book import Book
from broker.core.clock import ManualClock
from broker.core.errors import BrokerError, Reason
from broker.core.model import Ensemble, EnsembleState, Node, NodeSet, RequestRecord, State, Terms, Workspace
from broker.events import EventLog
from broker.store.base import Row, StoreProblem, Table
from broker.store.sqlite import MIGRATIONS, SqliteStore

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def workspace(uid: str = "u1", *, state: State = State.RUNNING, memory: int = 1024) -> Workspace:
    """A workspace of one node."""
    amounts = {"cpu": 1000, "memory": memory}
    return Workspace(
        uid=uid,
        tenant="default",
        id=f"ws-{uid}",
        create_time=NOW,
        node_sets=(NodeSet(amounts=amounts, user_data=b"\x00\xff"),),
        terms=Terms(),
        state=state,
        nodes=(Node(index=0, set_index=0, pool="lab", host="lab-1", held=amounts, pool_held={}, state=state),),
        start_time=NOW,
    )


def open_book(path: Path) -> tuple[SqliteStore, Book]:
    store = SqliteStore(path)
    book = Book(store, ManualClock(NOW), EventLog())
    book.load()
    return store, book


async def test_what_was_confirmed_is_there_after_a_restart(tmp_path: Path) -> None:
    store, book = open_book(tmp_path / "broker.db")
    record = RequestRecord(
        tenant="default", method="CreateWorkspace", request_id="r1", digest="v1:x", uid="u1", time=NOW
    )
    with book.transaction() as tx:
        written = tx.put(workspace())
        tx.remember(record)
        tx.set("draining/lab", "1")
    await tx.durable()
    store.close()

    store, again = open_book(tmp_path / "broker.db")
    assert again.workspaces == {"u1": written}
    assert again.requests == {record.key: record}
    assert again.settings["draining/lab"] == "1"
    assert again.revision == written.revision
    assert again.slots["lab"].slots("lab-1")[0].amounts == {"cpu": 1000, "memory": 1024}
    store.close()


async def test_the_running_connection_is_durable(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "broker.db")
    assert store.pragma("journal_mode") == "wal"
    assert store.pragma("synchronous") == 2  # FULL: every commit is fsynced
    store.close()


async def test_a_refusal_inside_a_transaction_leaves_no_trace(tmp_path: Path) -> None:
    store, book = open_book(tmp_path / "broker.db")

    def change_mind() -> None:
        with book.transaction() as tx:
            tx.put(workspace())
            tx.set("draining/lab", "1")
            raise RuntimeError("changed my mind")

    with pytest.raises(RuntimeError):
        change_mind()
    assert (book.workspaces, book.settings, book.revision) == ({}, {}, 0)
    assert not book.slots["lab"].slots("lab-1")
    assert book.find("default", "ws-u1") is None
    store.close()


async def test_a_full_disk_refuses_and_takes_back_and_recovers_with_room(tmp_path: Path) -> None:
    store, book = open_book(tmp_path / "broker.db")
    with book.transaction() as tx:
        before = tx.put(workspace())
    await tx.durable()
    pages = store.pragma("page_count")
    store._db.execute(f"PRAGMA max_page_count = {pages}")  # no room for one page more
    with book.transaction() as tx:
        tx.put(replace(before, display_name="x" * 1_000_000))
        tx.put(workspace("u2"))
    with pytest.raises(BrokerError) as refused:
        await tx.durable()
    assert refused.value.reason is Reason.STORE_UNAVAILABLE
    assert refused.value.retry_after
    assert book.workspaces == {"u1": before}
    assert book.revision == before.revision
    assert len(book.slots["lab"].slots("lab-1")) == 1
    assert book.events.revision == before.revision  # watchers saw nothing of it

    store._db.execute("PRAGMA max_page_count = 1000000")
    with book.transaction() as tx:
        tx.put(workspace("u2"))
    await tx.durable()
    store.close()
    store, again = open_book(tmp_path / "broker.db")
    assert sorted(again.workspaces) == ["u1", "u2"]
    store.close()


async def test_calls_in_flight_share_a_commit_and_one_alone_does_not_wait(tmp_path: Path) -> None:
    store, book = open_book(tmp_path / "broker.db")

    async def create(uid: str) -> None:
        with book.call():
            await asyncio.sleep(0)  # so that all are in flight
            with book.transaction() as tx:
                tx.put(workspace(uid))
            await tx.durable()

    before = store.commits
    await asyncio.gather(*(create(f"u{number}") for number in range(50)))
    assert store.commits - before <= 3
    before = store.commits
    for number in range(5):
        await create(f"alone{number}")
    assert store.commits - before == 5  # each acknowledged create was fsynced before the next began
    store.close()


def test_every_acknowledged_create_was_fsynced(tmp_path: Path) -> None:
    """Counted from outside: a preloaded library counts fsync and fdatasync on the state file's WAL."""
    source = tmp_path / "count.c"
    source.write_text(
        "#define _GNU_SOURCE\n#include <dlfcn.h>\n#include <unistd.h>\n#include <stdio.h>\n#include <stdlib.h>\n"
        '#include <string.h>\nstatic void note(int fd){char p[64],t[4096];snprintf(p,64,"/proc/self/fd/%d",fd);'
        'ssize_t n=readlink(p,t,4095);if(n>0){t[n]=0;if(strstr(t,"-wal")){FILE*f=fopen(getenv("SYNCS"),"a");'
        "fputc('x',f);fclose(f);}}}\n"
        'int fsync(int fd){int(*r)(int)=dlsym(RTLD_NEXT,"fsync");note(fd);return r(fd);}\n'
        'int fdatasync(int fd){int(*r)(int)=dlsym(RTLD_NEXT,"fdatasync");note(fd);return r(fd);}\n'
    )
    library = tmp_path / "count.so"
    if (
        shutil.which("cc") is None
        or subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], capture_output=True).returncode
    ):
        pytest.skip("no C compiler to count fsyncs with")
    script = tmp_path / "creates.py"
    script.write_text(
        "import asyncio, os, sys\n"
        "from tests.unit.test_store import open_book, workspace\n"
        "from pathlib import Path\n"
        "syncs = Path(os.environ['SYNCS'])\n"
        "async def main():\n"
        "    store, book = open_book(Path(sys.argv[1]))\n"
        "    for number in range(20):\n"
        "        before = syncs.stat().st_size if syncs.exists() else 0\n"
        "        with book.call(), book.transaction() as tx:\n"
        "            tx.put(workspace(f'u{number}'))\n"
        "        await tx.durable()\n"
        "        assert syncs.stat().st_size > before, f'create {number} was acknowledged without an fsync'\n"
        "    print(store.commits, syncs.stat().st_size)\n"
        "asyncio.run(main())\n"
    )
    root = Path(__file__).resolve().parents[2]
    environment = {
        **os.environ,
        "LD_PRELOAD": str(library),
        "SYNCS": str(tmp_path / "syncs"),
        "PYTHONPATH": f"{root}:{root / 'protos'}",
    }
    done = subprocess.run(
        [sys.executable, script, tmp_path / "broker.db"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    commits, syncs = map(int, done.stdout.split())
    assert commits >= 20
    assert syncs >= 20


def test_a_second_broker_on_the_same_file_is_refused(tmp_path: Path) -> None:
    first = SqliteStore(tmp_path / "broker.db")
    with pytest.raises(StoreProblem, match=f"in use by another broker \\(process {os.getpid()}\\)"):
        SqliteStore(tmp_path / "broker.db")
    first.close()
    SqliteStore(tmp_path / "broker.db").close()


def test_a_killed_broker_leaves_no_lock_behind(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    root = Path(__file__).resolve().parents[2]
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\nfrom broker.store.sqlite import SqliteStore\n"
            f"store = SqliteStore({str(path)!r})\nprint('held', flush=True)\ntime.sleep(60)",
        ],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{root}:{root / 'protos'}"},
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(StoreProblem, match=str(holder.pid)):
        SqliteStore(path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    SqliteStore(path).close()


def test_a_file_of_a_newer_version_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    SqliteStore(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    before = path.read_bytes()
    with pytest.raises(StoreProblem, match=r"newer broker \(schema 99"):
        SqliteStore(path)
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    path.write_text("this is not a database, and it is long enough to have a header " * 20)
    with pytest.raises(StoreProblem, match="cannot be used as a state file"):
        SqliteStore(path)


async def test_rows_of_one_key_are_written_once_a_commit(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "broker.db")
    rows = [store.submit([Row(Table.SETTINGS, "k", str(number))], alone=False) for number in range(3)]
    await asyncio.gather(*rows)
    assert store.load().settings == {"k": "2"}
    assert store.commits == 1
    store.close()


def test_an_empty_file_is_refused_and_not_taken_for_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    path.touch()
    with pytest.raises(StoreProblem, match="remove it to begin anew"):
        SqliteStore(path)


async def test_a_file_of_the_first_version_is_brought_up(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    record = RequestRecord(tenant="default", method="CreateWorkspace", request_id="r1", digest="d", uid="u1", time=NOW)
    with sqlite3.connect(path) as db:
        db.executescript(MIGRATIONS[0])
        for uid in ("u1", "u2"):
            db.execute("INSERT INTO workspaces VALUES (?, ?)", (uid, msgspec.json.encode(workspace(uid)).decode()))
        db.execute("INSERT INTO requests VALUES (?, ?, ?, ?)", (*record.key, msgspec.json.encode(record).decode()))
        db.execute("INSERT INTO settings VALUES ('draining/lab', '1')")
        db.execute("PRAGMA user_version = 1")
    db.close()
    store, book = open_book(path)
    assert book.workspaces == {"u1": workspace("u1"), "u2": workspace("u2")}
    assert book.requests == {record.key: record}
    assert book.settings == {"draining/lab": "1"}
    with book.transaction() as tx:
        changed = tx.put(replace(workspace("u1"), display_name="changed"))
        tx.forget(book.workspaces["u2"])
        tx.set("draining/lab", None)
    await tx.durable()
    store.close()
    store, book = open_book(path)
    assert book.workspaces == {"u1": changed}
    assert "draining/lab" not in book.settings
    store.close()


async def test_a_file_of_the_second_version_is_brought_up_and_takes_ensembles(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    with sqlite3.connect(path) as db:
        db.executescript("".join(MIGRATIONS[:2]))
        db.execute("INSERT INTO workspaces (record) VALUES (?)", (msgspec.json.encode(workspace("u1")).decode(),))
        db.execute("INSERT INTO settings (key, record) VALUES ('draining/lab', '1')")
        db.execute("PRAGMA user_version = 2")
    db.close()
    store, book = open_book(path)
    assert (book.workspaces, book.settings) == ({"u1": workspace("u1")}, {"draining/lab": "1"})
    assert book.ensembles == {}
    opened = Ensemble(uid="e1", tenant="default", id="pair", create_time=NOW, expire_time=NOW, workspaces=("u1",))
    with book.transaction() as tx:
        tx.put_ensemble(replace(opened, uid="e2", id="other"))
        written = tx.put_ensemble(opened)
    await tx.durable()
    store.close()

    store, book = open_book(path)
    assert store.pragma("user_version") == 3
    assert book.ensembles["e1"] == written
    assert book.find_ensemble("default", "pair") == written
    assert book.revision == written.revision > book.ensembles["e2"].revision
    record = RequestRecord(tenant="default", method="SealEnsemble", request_id="r1", digest="d", uid="e1", time=NOW)
    with book.transaction() as tx:
        tx.remember(record)
    with book.transaction() as tx:
        tx.forget_ensemble(written)
    await tx.durable()
    revision = book.revision
    store.close()
    store, book = open_book(path)
    assert set(book.ensembles) == {"e2"}
    assert book.find_ensemble("default", "pair") is None
    assert (book.requests, book.revision) == ({}, revision)
    store.close()


async def test_a_refused_change_of_an_ensemble_is_taken_back(tmp_path: Path) -> None:
    store, book = open_book(tmp_path / "broker.db")
    opened = Ensemble(uid="e1", tenant="default", id="pair", create_time=NOW, expire_time=NOW)
    with book.transaction() as tx:
        written = tx.put_ensemble(opened)

    def change_mind() -> None:
        with book.transaction() as tx:
            tx.put_ensemble(replace(written, state=EnsembleState.SEALED))
            tx.put_ensemble(replace(opened, uid="e2", id="other"))
            raise RuntimeError("changed my mind")

    with pytest.raises(RuntimeError):
        change_mind()
    assert (book.ensembles, book.revision) == ({"e1": written}, written.revision)
    assert book.find_ensemble("default", "other") is None
    await book.settled()
    store.close()


async def test_a_failed_commit_leaves_every_record_in_its_row(tmp_path: Path) -> None:
    """What was not committed must not be taken for a row that is there."""
    store, book = open_book(tmp_path / "broker.db")
    write = store._write

    def full(rows: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    store._write = full  # type: ignore[method-assign]
    with book.transaction() as tx:
        tx.put(workspace("u1"))
    with pytest.raises(BrokerError):
        await tx.durable()
    store._write = write  # type: ignore[method-assign]
    for number in range(2):
        with book.transaction() as tx:
            written = tx.put(workspace("u1", memory=1024 + number))
        await tx.durable()
    store.close()
    store, book = open_book(tmp_path / "broker.db")
    assert book.workspaces == {"u1": written}
    store.close()


async def test_one_who_waits_no_longer_leaves_the_others_their_commit(tmp_path: Path) -> None:
    store, book = open_book(tmp_path / "broker.db")
    with book.transaction() as first:
        first.put(workspace("u1"))
    with book.transaction() as second:
        second.put(workspace("u2"))
    gone = asyncio.ensure_future(first.durable())
    await asyncio.sleep(0)
    gone.cancel()
    await second.durable()
    with pytest.raises(asyncio.CancelledError):
        await gone
    store.close()
    store, book = open_book(tmp_path / "broker.db")
    assert set(book.workspaces) == {"u1", "u2"}
    store.close()


async def test_node_sets_of_the_same_content_are_one_value_after_a_restart(tmp_path: Path) -> None:
    store, book = open_book(tmp_path / "broker.db")
    with book.transaction() as tx:
        for uid, memory in (("u1", 1024), ("u2", 1024), ("u3", 2048)):
            tx.put(workspace(uid, memory=memory))
    await tx.durable()
    store.close()
    store, book = open_book(tmp_path / "broker.db")
    one, same, other = (book.workspaces[uid].node_sets for uid in ("u1", "u2", "u3"))
    assert one[0] is same[0]
    assert other[0].amounts["memory"] == 2048
    store.close()
