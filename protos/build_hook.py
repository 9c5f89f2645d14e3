"""Generates the Python code of the API from the .proto files, for a wheel, an editable install, and by hand.

`python protos/build_hook.py` (or `make protos`) writes `*_pb2.py`, `*_pb2.pyi` and `*_pb2_grpc.py` beside the .proto
files. The proto path is the Python import path, so nothing generated is rewritten.
"""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path
from typing import Any

PROTO_ROOT = Path(__file__).resolve().parent
PACKAGE = PROTO_ROOT / "workspacebroker" / "v1"


def generate() -> list[Path]:
    """Runs protoc over every .proto file; returns the files written."""
    import google.rpc
    from grpc_tools import protoc

    common_protos = Path(next(iter(google.rpc.__path__))).parents[1]
    well_known = resources.files("grpc_tools") / "_proto"
    sources = sorted(str(path) for path in PACKAGE.glob("*.proto"))
    arguments = [
        "protoc",
        f"--proto_path={PROTO_ROOT}",
        f"--proto_path={common_protos}",
        f"--proto_path={well_known}",
        f"--python_out={PROTO_ROOT}",
        f"--pyi_out={PROTO_ROOT}",
        f"--grpc_python_out={PROTO_ROOT}",
        *sources,
    ]
    if protoc.main(arguments) != 0:
        raise RuntimeError("protoc failed; its messages stand above")
    return sorted(path for path in PACKAGE.iterdir() if "_pb2" in path.name)


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run by hand, where hatchling need not be installed
    pass
else:

    class ProtocBuildHook(BuildHookInterface[Any]):
        """hatchling's entry: generates before any target is built."""

        PLUGIN_NAME = "custom"

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            """Generates the code; the targets pick it up through `artifacts`."""
            generate()


if __name__ == "__main__":
    for written in generate():
        sys.stdout.write(f"{written.relative_to(PROTO_ROOT.parent)}\n")
