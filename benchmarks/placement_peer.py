"""OpenStack Placement in this process, driven through its WSGI application; runs in an environment that `peers` builds.

    placement_peer.py fill CONFIGURATION HOSTS INVENTORY     makes so many hosts, each of "CLASS:TOTAL,..."
    placement_peer.py claim CONFIGURATION RESOURCES          claims "CLASS:AMOUNT,..." as standard input says

The second prints what it runs on, and then, for each line "THREADS SECONDS" it reads, claims a second. A claim is what
a scheduler does: ask for a candidate, and allocate it to a consumer that is new; where that is refused because another
claim came in between, all over again.
"""

from __future__ import annotations

import logging
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from importlib.metadata import version
from threading import Thread
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import uuid4

from oslo_config import cfg  # type: ignore[import-not-found]
from placement import conf, db_api, deploy  # type: ignore[import-not-found]
from placement.db.sqlalchemy import migration  # type: ignore[import-not-found]
from webob import Request  # type: ignore[import-untyped]

OK: Final = 200
NO_CONTENT: Final = 204
CONFLICT: Final = 409
LOCKED: Final = "database is locked"
"""SQLite's conflict, which Placement answers as an error of its own."""

HEADERS: Final = {"X-Auth-Token": "admin", "OpenStack-API-Version": "placement 1.39"}
OWNER: Final = {"project_id": "bench", "user_id": "bench"}
CONSUMER_TYPE: Final = "INSTANCE"
PACKAGES: Final = ("openstack-placement", "oslo.db", "SQLAlchemy")


class Placement:
    """The application of one configuration file."""

    def __init__(self, configuration: cfg.ConfigOpts) -> None:
        db_api.configure(configuration)
        migration.create_schema()
        self._application = deploy.loadapp(configuration)

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The response to one request."""
        request = Request.blank(path, method=method, headers=HEADERS)
        if body is not None:
            request.content_type = "application/json"
            request.json = body
        return request.get_response(self._application)

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The document of a response. Raises RuntimeError for a refusal."""
        response = self.call(method, path, body)
        if response.status_int != OK:
            raise RuntimeError(f"{method} {path}: {response.status} {response.text}")
        return response.json

    def add_host(self, name: str, inventory: Mapping[str, int]) -> None:
        """Makes a resource provider."""
        provider = self.ask("POST", "/resource_providers", {"name": name})
        self.ask(
            "PUT",
            f"/resource_providers/{provider['uuid']}/inventories",
            {
                "resource_provider_generation": provider["generation"],
                "inventories": {kind: {"total": total} for kind, total in inventory.items()},
            },
        )

    def claim(self, resources: str) -> bool:
        """Allocates to a new consumer; whether no other claim came in between. Raises RuntimeError for a refusal."""
        candidate = self.ask("GET", f"/allocation_candidates?limit=1&resources={resources}")["allocation_requests"][0]
        wanted = {**candidate, **OWNER, "consumer_generation": None, "consumer_type": CONSUMER_TYPE}
        response = self.call("PUT", f"/allocations/{uuid4()}", wanted)
        if response.status_int == NO_CONTENT:
            return True
        if response.status_int == CONFLICT or LOCKED in response.text:
            return False
        raise RuntimeError(f"a claim: {response.status} {response.text}")

    def claimed(self) -> int:
        """Consumers that hold something."""
        used = self.ask("GET", f"/usages?project_id={OWNER['project_id']}&consumer_type={CONSUMER_TYPE}")["usages"]
        return int(used[CONSUMER_TYPE]["consumer_count"]) if used else 0

    def facts(self) -> str:
        """Versions, and how its own connections write."""
        with db_api.get_placement_engine().connect() as connection:
            journal, synchronous = (
                connection.exec_driver_sql(f"PRAGMA {pragma}").scalar() for pragma in ("journal_mode", "synchronous")
            )
        versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
        return f"{versions}, SQLite journal_mode {journal}, synchronous {synchronous}"


def rate(placement: Placement, resources: str, threads: int, seconds: float) -> float:
    """Claims a second. Raises RuntimeError where they are not all found allocated afterwards."""
    made: list[int] = []
    before = placement.claimed()
    began = time.perf_counter()

    def claim() -> None:
        count = 0
        while time.perf_counter() < began + seconds:
            count += placement.claim(resources)
        made.append(count)

    claiming = [Thread(target=claim) for _ in range(threads)]
    for thread in claiming:
        thread.start()
    for thread in claiming:
        thread.join()
    took = time.perf_counter() - began
    if placement.claimed() - before != sum(made) or len(made) != threads:
        raise RuntimeError(f"{sum(made)} claims by {len(made)} threads, but {placement.claimed() - before} allocated")
    return sum(made) / took


@contextmanager
def started(path: str) -> Iterator[Placement]:
    """Placement as a configuration file says, on a database with a write-ahead log."""
    configuration = cfg.ConfigOpts()
    conf.register_opts(configuration)
    configuration([], project="placement", default_config_files=[path])
    database = urlsplit(configuration.placement_database.connection).path[1:]
    # Placement opens a connection a transaction. Were none kept open, each would end with a checkpoint.
    with closing(sqlite3.connect(database)) as kept_open:
        kept_open.execute("PRAGMA journal_mode = WAL")
        yield Placement(configuration)


def say(line: str) -> None:
    """Answers whoever waits for it."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Fills, or claims until standard input ends."""
    logging.disable()
    task, path, *arguments = sys.argv[1:]
    with started(path) as placement:
        if task == "fill":
            hosts, amounts = arguments
            inventory = {kind: int(total) for kind, total in (entry.split(":") for entry in amounts.split(","))}
            for number in range(int(hosts)):
                placement.add_host(f"host-{number:05d}", inventory)
            return
        (resources,) = arguments
        placement.claim(resources)  # what it reads only once is not timed
        say(placement.facts())
        for line in sys.stdin:
            threads, seconds = line.split()
            say(str(rate(placement, resources, int(threads), float(seconds))))


if __name__ == "__main__":
    main()
