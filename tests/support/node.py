"""`@grpc/grpc-js` on Node.js: a gRPC client that nobody here wrote.

Responsible for installing it once, at the versions of tests/wire/grpc_js/package-lock.json, into .cache/grpc-js, and
for running one scenario of tests/wire/grpc_js/client.js. Where Node.js or npm is missing the test skips and says so.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import google.rpc
import pytest

ROOT: Final = Path(__file__).parents[2]
SOURCES: Final = ROOT / "tests/wire/grpc_js"
CACHE: Final = ROOT / ".cache/grpc-js"
NO_NODE: Final = "Node.js 18 or newer and npm are not on this machine"
NO_PACKAGES: Final = "npm cannot install @grpc/grpc-js here"


def _node_is_there() -> bool:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return False
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True, timeout=30).stdout
    return int(version.strip().removeprefix("v").split(".")[0]) >= 18


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """One process of the test suite at a time."""
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def require_grpc_js() -> Path:
    """The folder of the packages, installed if need be; skips where that cannot be."""
    if not _node_is_there():
        pytest.skip(NO_NODE)
    CACHE.mkdir(parents=True, exist_ok=True)
    lock = (SOURCES / "package-lock.json").read_bytes()
    wanted = hashlib.sha256(lock).hexdigest()
    stamp = CACHE / "installed"
    with _alone(CACHE / "lock"):
        if not stamp.exists() or stamp.read_text() != wanted:
            for name in ("package.json", "package-lock.json"):
                shutil.copy(SOURCES / name, CACHE)
            done = subprocess.run(
                ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
                cwd=CACHE,
                capture_output=True,
                text=True,
                timeout=100,
                check=False,
            )
            if done.returncode != 0:
                pytest.skip(NO_PACKAGES)
            stamp.write_text(wanted)
    return CACHE / "node_modules"


def command(port: int, scenario: str, request: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """How one scenario of client.js is run: arguments and environment."""
    packages = require_grpc_js()
    common = Path(next(iter(google.rpc.__path__))).parents[1]
    job = {
        "address": f"127.0.0.1:{port}",
        "scenario": scenario,
        "protos": [str(ROOT / "protos"), str(common)],
        "serviceConfig": str(ROOT / "clients/service_config.json"),
        **request,
    }
    return ["node", str(SOURCES / "client.js"), json.dumps(job)], {**os.environ, "NODE_PATH": str(packages)}


def run(port: int, scenario: str, **request: Any) -> Any:
    """Runs a scenario to its end; the JSON that it printed."""
    arguments, environment = command(port, scenario, request)
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return json.loads(done.stdout)
