"""What a user gets: a wheel, built from a clean copy and from the sdist alike, that serves from a fresh venv.

Nothing here uses the checkout's own environment except to build; the network is needed for the packages.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Final

import pytest

from tests.support.process import broker_process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT: Final = Path(__file__).parents[2]
NAMES: Final = {"broker", "backends", "clients", "workspacebroker"}
CONFIGURATION: Final = """
[server]
listen = "127.0.0.1:0"
[pools.lab]
backend = "simulator"
[[pools.lab.hosts]]
cpu = 8000
memory = 16384
[instance_types.small]
cpu = 1000
memory = 1024
"""


def command(*arguments: str | Path, folder: Path) -> str:
    """Runs a command to its end, which must be a good one; what it printed."""
    done = subprocess.run(
        [str(argument) for argument in arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{arguments}: {done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree as a fresh clone has it: nothing generated, nothing installed."""
    copy = tmp_path_factory.mktemp("source") / "tree"
    ignored = shutil.ignore_patterns(
        ".git", ".venv*", ".cache", "dist", "build", "__pycache__", ".*_cache", ".hypothesis", "*_pb2*", "*.db*"
    )
    shutil.copytree(ROOT, copy, ignore=ignored)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the tree, with the build tools that are installed here."""
    folder = tmp_path_factory.mktemp("wheel")
    command(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source, folder=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs of a fresh venv with the wheel in it, and the newest of all it needs."""
    venv = tmp_path_factory.mktemp("fresh") / "venv"
    command(sys.executable, "-m", "venv", venv, folder=venv.parent)
    programs = venv / "bin"
    command(
        programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel, folder=venv.parent
    )
    return programs


def contents(wheel: Path) -> dict[str, int]:
    """The files of a wheel, with their check sums."""
    with zipfile.ZipFile(wheel) as archive:
        return {entry.filename: entry.CRC for entry in archive.infolist()}


def test_the_wheel_has_the_four_packages_and_no_more(wheel: Path) -> None:
    names = {name.split("/")[0] for name in contents(wheel)}
    assert {name for name in names if not name.endswith(".dist-info")} == NAMES


def test_the_wheel_has_what_is_not_python(wheel: Path) -> None:
    files = set(contents(wheel))
    for module in ("resources", "errors", "workspace_service", "pool_service", "tenant_service"):
        for ending in (".proto", "_pb2.py", "_pb2.pyi", "_pb2_grpc.py"):
            assert f"workspacebroker/v1/{module}{ending}" in files
    assert {f"{package}/py.typed" for package in NAMES} <= files  # what "Typing :: Typed" promises
    assert "clients/service_config.json" in files
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in files)
    assert not [name for name in files if name.endswith((".pyc", ".db"))]


def test_an_sdist_builds_the_same_wheel_in_isolation(source: Path, wheel: Path, tmp_path: Path) -> None:
    command(sys.executable, "-m", "build", "--outdir", tmp_path, source, folder=tmp_path)
    (sdist,) = tmp_path.glob("*.tar.gz")
    (built,) = tmp_path.glob("*.whl")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "protos/build_hook.py", "protos/workspacebroker/v1/resources.proto"} <= names
    assert not [name for name in names if name.startswith((".git/", ".venv", ".cache"))]
    ours, theirs = contents(wheel), contents(built)
    assert set(ours) == set(theirs)
    assert {name for name in ours if ours[name] != theirs[name]} == set()


def test_an_installed_pair_serves_and_answers(installed: Path, tmp_path: Path) -> None:
    with broker_process(tmp_path / "site", CONFIGURATION, program=installed / "workspace-brokerd") as process:
        workspace: list[str | Path] = [installed / "workspace", "--server", process.address]
        pools = json.loads(command(*workspace, "pools", "--json", folder=tmp_path))["pools"]
        assert [(pool["name"], pool["state"]) for pool in pools] == [("pools/lab", "STATE_ACTIVE")]
        assert "lab" in command(*workspace, "pools", folder=tmp_path)
        command(
            *workspace, "create", "--pool", "lab", "--type", "small", "--duration", "1h", "--id", "hi", "--wait",
            folder=tmp_path,
        )  # fmt: skip
        assert "RUNNING" in command(*workspace, "show", "hi", folder=tmp_path)
        command(*workspace, "terminate", "hi", "--wait", folder=tmp_path)


def test_both_programs_say_their_version(installed: Path, tmp_path: Path) -> None:
    for program in ("workspace-brokerd", "workspace"):
        assert command(installed / program, "--version", folder=tmp_path).startswith(f"{program} 0.1.0")


def test_what_is_installed_comes_from_the_venv_and_warns_of_nothing(installed: Path, tmp_path: Path) -> None:
    """Generated code that is older than protobuf allows, or newer, warns when it is imported."""
    script = """
import broker.server, broker.__main__, backends, clients.sdk, clients.aio, clients.cli.app
import backends.simulator, backends.opennebula.adapter, backends.opennebula.standin
from workspacebroker.v1 import errors_pb2
print(broker.__file__, backends.__file__, clients.__file__, errors_pb2.__file__)
"""
    printed = command(installed / "python", "-I", "-W", "error", "-c", script, folder=tmp_path)
    assert len(printed.split()) == 4
    assert all(Path(file).is_relative_to(installed.parent) for file in printed.split())
    command(installed / "python", "-m", "pip", "check", "--disable-pip-version-check", folder=tmp_path)


def test_the_backends_are_found_by_their_entry_points(installed: Path, tmp_path: Path) -> None:
    script = (
        "from backends import registry\n"
        "for name in registry.names():\n"
        "    try: print(name, 'is', registry.load(name).__name__)\n"
        "    except ModuleNotFoundError as error: print(name, 'lacks', error.name)\n"
    )
    printed = command(installed / "python", "-I", "-c", script, folder=tmp_path)
    assert "simulator is backends.simulator" in printed
    assert "opennebula is backends.opennebula" in printed
    for name in ("xen", "libvirt"):  # their library is an extra
        assert f"{name} lacks libvirt" in printed
