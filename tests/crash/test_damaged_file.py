"""A state file that is damaged: refused at start, with what to do, and left as it is."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from workspacebroker.v1 import workspace_service_pb2 as api
from workspacebroker.v1 import workspace_service_pb2_grpc as workspaces_grpc

from tests.support.broker import LAB, TENANT, small
from tests.support.process import BrokerProcess

PAGE = 4096


def _middle(data: bytes) -> bytes:
    """Two pages in the middle are of something else."""
    middle = len(data) // PAGE // 2 * PAGE
    return data[:middle] + b"\xa5" * (2 * PAGE) + data[middle + 2 * PAGE :]


def _header(data: bytes) -> bytes:
    return b"not a database file at all" + data[26:]


def _half(data: bytes) -> bytes:
    return data[: len(data) // PAGE // 2 * PAGE]


def _torn(data: bytes) -> bytes:
    """It ends within a page."""
    return data[: len(data) - PAGE - 100]


def _record(data: bytes) -> bytes:
    """Bytes within one record: the pages are in order, the words are not."""
    place = data.index(b'"tenant":')
    return data[:place] + b"\x00\xff\xfe" + data[place + 3 :]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a broker that has stopped, of some twenty pages."""
    folder = tmp_path_factory.mktemp("written")
    process = BrokerProcess(folder, LAB)
    try:
        process.wait_serving()
        with grpc.insecure_channel(process.address) as channel:
            stub = workspaces_grpc.WorkspaceServiceStub(channel)
            for number in range(30):
                wish = small(memory=64, cpu=100, labels={"filling": "x" * 60})
                stub.CreateWorkspace(
                    api.CreateWorkspaceRequest(parent=TENANT, workspace=wish, request_id=f"request-{number}"),
                    wait_for_ready=True,
                    timeout=10,
                )
        assert process.stop() == 0
    finally:
        process.kill()
    data = (folder / "broker.db").read_bytes()
    assert len(data) >= 8 * PAGE
    return data


@pytest.mark.parametrize("damage", [_header, _middle, _half, _torn, _record])
def test_a_damaged_file_is_refused_and_not_touched(
    damage: Callable[[bytes], bytes], written: bytes, tmp_path: Path
) -> None:
    damaged = damage(written)
    assert damaged != written
    file = tmp_path / "broker.db"
    file.write_bytes(damaged)
    process = BrokerProcess(tmp_path, LAB)
    try:
        assert process.wait_end() == 1, process.errors()
    finally:
        process.kill()
    words = process.errors()
    assert str(file) in words
    assert "restore a copy" in words
    assert "Traceback" not in words
    assert process.output() == ""
    assert file.read_bytes() == damaged


def test_the_whole_file_is_taken(written: bytes, tmp_path: Path) -> None:
    """What is refused above is refused for its damage."""
    (tmp_path / "broker.db").write_bytes(written)
    process = BrokerProcess(tmp_path, LAB)
    try:
        process.wait_serving()
        assert process.stop() == 0
    finally:
        process.kill()
    with sqlite3.connect(tmp_path / "broker.db") as db:
        assert db.execute("SELECT count(*) FROM workspaces").fetchone()[0] >= 30
