"""GetWorkspace, ListWorkspaces and WatchWorkspaces on 100,000 running workspaces, against the same bare gRPC echo.

Gets go over 10,000 names at random, lists over the first ten pages of 1,000, and a watcher is given 5,000 changes that
came before it. The echo holds one answer of each kind that the broker gave, and only serialises it for each call: no
server that builds its answers can do better.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from google.protobuf.message import Message
from workspacebroker.v1 import workspace_service_pb2 as api

from benchmarks.harness import Options, Row
from benchmarks.load import THROUGHPUT, Round, answer_to, broker, drive, echo, rows, stream_of
from benchmarks.population import TENANT, workspace_name, write_population

NAME: Final = "reads"
WORKSPACES: Final = 100_000
HOSTS: Final = 1_000
NAMES: Final = 10_000
PAGES: Final = 10
PAGE_SIZE: Final = 1_000
CHANGES: Final = 5_000
SECONDS: Final = "1.0"
GOAL: Final = {THROUGHPUT: 0.9}
CASES: Final[Mapping[str, tuple[str, tuple[str, ...], Mapping[str, float]]]] = {
    "Get, 1 in flight": ("GetWorkspace", ("1", SECONDS), GOAL),
    "Get, 32 in flight": ("GetWorkspace", ("32", SECONDS), GOAL),
    "List 1,000 of 100,000, 4 in flight": ("ListWorkspaces", ("4", SECONDS), {}),
    "Watch, 5,000 changes to one": ("WatchWorkspaces", ("--messages", str(CHANGES)), {}),
}
"""By case: the method, how the client calls it, and bounds on the ratios."""


def run(options: Options) -> list[Row]:
    """Measures."""
    measured: dict[str, list[tuple[Round, Round]]] = {case: [] for case in CASES}
    with TemporaryDirectory() as folder:
        options.progress(f"{NAME}: a broker with {WORKSPACES:,} workspaces starts")
        with broker(write_population(Path(folder), WORKSPACES, HOSTS)) as ours:
            address, _ = ours
            requests: dict[str, list[Message]] = {
                "GetWorkspace": [
                    api.GetWorkspaceRequest(name=workspace_name(number))
                    for number in random.Random(0).sample(range(1, WORKSPACES + 1), NAMES)
                ],
                "ListWorkspaces": _pages(address),
                "WatchWorkspaces": [
                    api.WatchWorkspacesRequest(parent=f"tenants/{TENANT}", after_revision=WORKSPACES - CHANGES)
                ],
            }
            recorded = {
                method: [answer_to(address, method, requests[method][0])]
                for method in ("GetWorkspace", "ListWorkspaces")
            }
            recorded["WatchWorkspaces"] = stream_of(address, "WatchWorkspaces", requests["WatchWorkspaces"][0], CHANGES)
            with echo(recorded, Path(folder)) as bare:
                for number in range(options.rounds):
                    options.progress(f"{NAME}: round {number + 1} of {options.rounds}")
                    for case, (method, how, _) in CASES.items():
                        measured[case].append(
                            (
                                drive(ours, method, requests[method], *how),
                                drive(bare, method, requests[method], *how),
                            )
                        )
    return [line for case, rounds in measured.items() for line in rows(NAME, case, rounds, CASES[case][2])]


def _pages(address: str) -> list[Message]:
    """Requests for the first pages, one after another."""
    token = ""
    pages: list[Message] = []
    for _ in range(PAGES):
        page = api.ListWorkspacesRequest(parent=f"tenants/{TENANT}", page_size=PAGE_SIZE, page_token=token)
        token = api.ListWorkspacesResponse.FromString(answer_to(address, "ListWorkspaces", page)).next_page_token
        pages.append(page)
    return pages
