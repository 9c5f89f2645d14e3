"""Fails when a test was skipped that is not named, with its reason, in the list of allowed skips.

usage: check_skips.py JUNIT_XML ALLOWED. A line of ALLOWED is "test id: reason"; # begins a comment.
"""

from __future__ import annotations

import ast
import sys
import xml.etree.ElementTree as ET
from pathlib import Path


def main(report: str, allowed: str) -> int:
    """Returns the exit code."""
    lines = (line.split("#")[0].strip() for line in Path(allowed).read_text().splitlines())
    named = dict(line.split(": ", 1) for line in lines if line)
    skipped = {}
    for case in ET.parse(report).getroot().iter("testcase"):
        skip = case.find("skipped")
        if skip is not None:
            reason = skip.get("message", "")
            if reason == "collection skipped":  # a whole module: file, line and reason stand in the text
                reason = ast.literal_eval(skip.text or "")[2].removeprefix("Skipped: ")
            skipped[f"{case.get('classname')}.{case.get('name')}".lstrip(".")] = reason
    unnamed = {test: reason for test, reason in skipped.items() if named.get(test) != reason}
    for test, reason in sorted(unnamed.items()):
        sys.stderr.write(f"skipped and not named in {allowed}: {test}: {reason}\n")
    return 1 if unnamed else 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
