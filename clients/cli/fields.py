"""Bad fields in a caller's words: the flag that set a field, and how to mend it.

A field that no flag sets keeps the API's path. Decides nothing about which fields are bad.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from clients.errors import Violation

_SET = r"node_sets\[0\]\."
_FLAGS = tuple(
    (re.compile(pattern), flag)
    for pattern, flag in (
        (_SET + r'amounts\.amounts\["(cpu|memory|disk)"\]', r"--\1"),
        (_SET + r'amounts\.amounts\["(.*)"\]', r"--amount \1"),
        (_SET + r"amounts.*", "--amount"),
        (_SET + r"instance_type", "--type"),
        (_SET + r"nics\[\d+\].*|" + _SET + "nics", "--network"),
        (_SET + r"ssh_public_keys.*", "--ssh-key"),
        (_SET + r'host_selector\["(.*?)"\].*', r"--select \1"),
        (_SET + r"host_selector", "--select"),
        (_SET + r"(image|count|placement)", r"--\1"),
        (_SET + r"min_count", "--min-count"),
        (_SET + r"user_data", "--user-data"),
        (r"pool", "--pool"),
        (r'labels\["(.*)"\].*', r"--label \1"),
        (r"label_selector.*|labels", "--label"),
        (r'parameters\["(.*?)"\].*', r"--param \1"),
        (r"parameters", "--param"),
        (r"display_name", "--name"),
        (r"initial_state", "--initial-state"),
        (r"terms\.open_ended", "--duration unlimited"),
        (r"terms\.(start|earliest_start)_time", r"--\1"),
        (r"terms\.(duration|deadline)", r"--\1"),
        (r"terms\.end_action", "--end-action"),
        (r"terms\.queue_until", "--queue-until"),
        (r"terms\.(preemptible|priority)", r"--\1"),
        (r"workspace_id", "--id"),
        (r"ensemble", "--ensemble"),
        (r"ensemble_id", "E"),
        (r"ensemble\.expire_time", "--expire"),
        (r"parent", "--tenant"),
        (r"(?:target\.)?request_id", "--request-id"),
        (r"target\.node_indexes.*", "--node"),
        (r"(?:target\.)?name", "W"),
        (r"image_name", "--image-name"),
        (r"device", "--device"),
        (r"after_revision", "--after"),
    )
)
_MEND = {
    ("--cpu", "REQUIRED"): "give --cpu CORES, or a whole size with --type (see them: workspace types POOL)",
    ("--memory", "REQUIRED"): "give --memory SIZE, or a whole size with --type (see them: workspace types POOL)",
    ("--image", "REQUIRED"): "give --image NAME (see them: workspace images POOL)",
    ("--type", ""): "see them: workspace types POOL",
    ("--image", ""): "see them: workspace images POOL",
    ("--network", ""): "see them: workspace networks POOL",
    ("--pool", ""): "see them: workspace pools",
    ("--param", ""): "see them: workspace parameters POOL",
}


def flag_for(path: str, *, one_set: bool = True) -> str:
    """The flag that sets a field; the path itself where none does, or where there are several sets of nodes."""
    short = path.removeprefix("workspace.")
    if short.startswith("node_sets") and not one_set:
        return short
    for pattern, flag in _FLAGS:
        if match := pattern.fullmatch(short):
            return match.expand(flag).replace("--earliest_start", "--earliest")
    return short


def sentences(violations: list[Violation], *, one_set: bool) -> Iterator[str]:
    """One sentence for each bad field, none twice."""
    said = set()
    for violation in violations:
        flag = flag_for(violation.subject, one_set=one_set)
        text = violation.message or violation.reason
        colon = "" if re.match(r"(is|are|has|have|needs?|excludes?|makes?) ", text) else ":"
        word = flag.split(" ")[0]
        mend = _MEND.get((word, violation.reason)) or _MEND.get((word, ""), "") * ("UNKNOWN" in violation.reason)
        sentence = f"{flag}{colon} {text}{f'; {mend}' if mend else ''}"
        if sentence not in said:
            said.add(sentence)
            yield sentence
