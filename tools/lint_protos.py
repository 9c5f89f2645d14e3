"""buf lint and buf breaking over the API, without a registry.

buf does not know google/rpc/status.proto by itself, so our protos and google/rpc (from googleapis-common-protos) are
copied side by side and linted there. `--write-baseline` saves what later changes must not break.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import google.rpc

PROTOS = Path(__file__).resolve().parents[1] / "protos"
BASELINE = PROTOS / "v1.binpb"
CONFIGURATION = """version: v2
lint:
  use: [STANDARD, COMMENT_SERVICE, COMMENT_RPC, COMMENT_MESSAGE, COMMENT_ENUM]
  ignore: [google]
breaking:
  use: [FILE]
  ignore: [google]
"""


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    buf = Path(sys.executable).with_name("buf")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(PROTOS / "workspacebroker", folder / "workspacebroker", ignore=shutil.ignore_patterns("*.py*"))
        common = Path(next(iter(google.rpc.__path__)))
        shutil.copytree(common, folder / "google" / "rpc", ignore=shutil.ignore_patterns("*.py*", "context"))
        (folder / "buf.yaml").write_text(CONFIGURATION)
        if "--write-baseline" in arguments:
            return subprocess.run([buf, "build", "-o", BASELINE], cwd=folder).returncode
        linted = subprocess.run([buf, "lint"], cwd=folder).returncode
        broken = subprocess.run([buf, "breaking", "--against", BASELINE], cwd=folder).returncode
    return linted or broken


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
