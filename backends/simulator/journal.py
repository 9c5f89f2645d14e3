"""Keeps a world in a file, so that a broker that was killed finds its VMs again.

The file is one JSON document a line, later lines replacing earlier ones: a change costs one line however many VMs
there are. A line that a kill cut short is dropped; on opening the file is written anew, whole, and put in place of
the old one in one move.
"""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from msgspec import to_builtins
from msgspec.structs import replace

from backends.base import Identity, Observation, ObservedNic
from backends.simulator.world import Change, Machine, SavedImage, World


class Journal:
    """The file of one world."""

    def __init__(self, path: Path, world: World) -> None:
        self._path = path
        self._world = world
        self._file: TextIO | None = None

    def open(self) -> None:
        """Reads what is there and goes on from it. Raises OSError, ValueError."""
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
        machines: dict[str, Machine] = {}
        for number, line in enumerate(lines):
            try:
                entry = json.loads(line)
            except ValueError:
                if number == len(lines) - 1:
                    break
                raise ValueError(f"{self._path}: line {number + 1} is not JSON") from None
            if "gone" in entry:
                machines.pop(entry["gone"], None)
            elif "image" in entry:
                self._world.save(_image(entry["image"]))
            else:
                machine = _machine(entry["vm"])
                machines[machine.backend_id] = machine
        for machine in machines.values():
            self._world.put(machine)
            self._world.addresses.note(machine.nics)
        fresh = self._path.with_name(self._path.name + ".new")
        with fresh.open("w", encoding="utf-8") as file:
            file.writelines(map(_line, self._world.images.values()))
            file.writelines(map(_line, self._world.machines.values()))
        os.replace(fresh, self._path)
        self._file = self._path.open("a", encoding="utf-8")
        self._world.log = []

    def write(self) -> None:
        """Writes what has changed since the last time."""
        if self._file is not None and self._world.log:
            self._file.write("".join(map(_line, self._world.log)))
            self._file.flush()
            self._world.log.clear()

    def close(self) -> None:
        """Lets go of the file."""
        if self._file is not None:
            self.write()
            self._file.close()
            self._file = None
            self._world.log = None


def _line(entry: Machine | SavedImage | str) -> str:
    if isinstance(entry, str):
        document: dict[str, Any] = {"gone": entry}
    elif isinstance(entry, SavedImage):
        document = {"image": to_builtins(entry)}
    else:
        document = {"vm": to_builtins(replace(entry, spec=None))}
    return json.dumps(document, separators=(",", ":")) + "\n"


def _image(values: dict[str, Any]) -> SavedImage:
    return SavedImage(**values | {"ready_time": datetime.fromisoformat(values["ready_time"])})


def _machine(values: dict[str, Any]) -> Machine:
    known = set(Machine.__struct_fields__)
    kept = {key: value for key, value in values.items() if key in known}
    change = kept["change"]
    if change is not None:
        due = change["due"]
        change = Change(
            **change
            | {
                "due": datetime.fromisoformat(due) if due else None,
                "then": Observation(change["then"]),
                "shown": Observation(change["shown"]),
            }
        )
    return Machine(
        **kept
        | {
            "identity": Identity(**kept["identity"]),
            "nics": tuple(ObservedNic(**nic | {"addresses": tuple(nic["addresses"])}) for nic in kept["nics"]),
            "observation": Observation(kept["observation"]),
            "change": change,
        }
    )
