"""The `workspace` command as a person types it, and answers compared with what they should be.

Output of the command goes straight to where the demo's own goes, so a terminal shows what it would show a person.
What is compared is read with `--json`.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sysconfig
import textwrap
from pathlib import Path
from typing import Any

PROGRAMS = Path(sysconfig.get_path("scripts"))
PATIENCE = 60.0  # seconds; an answer takes well under one
EXIT_CODES = {0: "done", 3: "not now", 4: "never"}  # as `workspace --help` lists them
WIDEST = 100


class Differs(Exception):
    """Something is not as it should be."""

    def __init__(self, what: str, *, expected: object, got: object) -> None:
        super().__init__(f"{what}\n  expected: {expected}\n  got:      {got}")


def say(text: str = "") -> None:
    """Prints at once: others write to the same place."""
    print(text, flush=True)


def explain(text: str) -> None:
    """Prints a paragraph."""
    say(_wrapped(text, indent=""))


def checked(text: str, *, expected: object, got: object) -> None:
    """Prints what was verified. Raises Differs if it is not so."""
    if got != expected:
        raise Differs(text, expected=expected, got=got)
    say(_wrapped(f"checked: {text}", indent="         "))


def _wrapped(text: str, indent: str) -> str:
    width = min(shutil.get_terminal_size((WIDEST, 24)).columns, WIDEST)
    return textwrap.fill(text, max(width, 40), subsequent_indent=indent, break_on_hyphens=False)


def local_environment(**more: str) -> dict[str, str]:
    """The environment for programs that talk to this machine only, whatever proxy is set."""
    return {**os.environ, "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1", **more}


class Shell:
    """A shell in which the broker's address is set."""

    def __init__(self, server: str) -> None:
        self._environment = local_environment(WORKSPACE_SERVER=server, WORKSPACE_TENANT="")

    def run(self, line: str, *, exits: int = 0) -> None:
        """Runs a command for all to see. Raises Differs unless it leaves with the exit code `exits`."""
        say(f"$ {line}")
        self._finished(line, exits, stderr=subprocess.STDOUT)

    def read(self, line: str, *, exits: int = 0) -> Any:
        """The answer to a command as JSON, not printed; of a refusal, its google.rpc.Status."""
        done = self._finished(f"{line} --json", exits, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        document = done.stderr if exits else done.stdout
        try:
            return json.loads(document)
        except ValueError:
            raise Differs(f"{line} --json", expected="a JSON document", got=document) from None

    def _finished(self, line: str, exits: int, **streams: int) -> subprocess.CompletedProcess[str]:
        program, *arguments = shlex.split(line)
        try:
            done = subprocess.run(
                [PROGRAMS / program, *arguments],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                text=True,
                timeout=PATIENCE,
                **streams,  # type: ignore[call-overload]
            )
        except subprocess.TimeoutExpired:
            raise Differs(line, expected="an answer", got=f"none within {PATIENCE:g} s") from None
        if done.returncode != exits:
            raise Differs(line, expected=_exit(exits), got=f"{_exit(done.returncode)} {done.stderr or ''}".rstrip())
        assert isinstance(done, subprocess.CompletedProcess)
        return done


def _exit(code: int) -> str:
    meaning = EXIT_CODES.get(code)
    return f"exit code {code} ({meaning})" if meaning else f"exit code {code}"
