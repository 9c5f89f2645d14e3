"""`python -m examples.demo`: plays the story and leaves with 0, or with 1 at the first answer that differs.

Configuration, state and log are in a temporary folder that is kept, and named, only after a failure.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from examples.demo.scene import playing
from examples.demo.shell import Differs, explain, say
from examples.demo.story import STEPS, StepFailed, tell

INTERRUPTED = 128 + signal.SIGINT


def _node_memory() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description="The story of the broker, checked.")
    parser.add_argument(
        "--node-memory",
        type=int,
        default=2048,
        metavar="MIB",
        help="memory of each node of pool one; the story is true for 2048 (the default): try 8192 and see it fail",
    )
    memory: int = parser.parse_args().node_memory
    return memory


def main() -> int:
    """Plays the story; returns the exit code."""
    node_memory = _node_memory()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: everything is stopped
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="workspace-demo-"))
    try:
        _play(folder, node_memory)
    except Exception as failure:
        what = failure if isinstance(failure, Differs | StepFailed) else traceback.format_exc()
        sys.stderr.write(f"\nFAILED: {what}\n\nThe broker's log: {folder / 'broker.log'}\n")
        return 1
    except KeyboardInterrupt:
        shutil.rmtree(folder)
        return INTERRUPTED
    shutil.rmtree(folder)
    say(f"\nAll {len(STEPS)} steps went as they should, in {time.monotonic() - began:.0f} s.")
    say("A configuration to start your own from: examples/broker.toml")
    return 0


def _play(folder: Path, node_memory: int) -> None:
    explain(
        "A workspace is a lease of one VM or of several together. Below, the broker has two pools to place them in: "
        f"an OpenNebula with four nodes of {node_memory} MiB (a stand-in that speaks its XML-RPC), and two Xen hosts "
        "of 8192 MiB (simulated). Lines that begin with $ are typed as you would type them."
    )
    say()
    with playing(folder, node_memory) as scene:
        say(f"OpenNebula listens on {scene.standin.endpoint}")
        say(f"The broker listens on {scene.server}")
        say(f"$ export WORKSPACE_SERVER={scene.server}")
        tell(scene)


if __name__ == "__main__":
    raise SystemExit(main())
