"""What OpenNebula itself says of its VMs, asked by XML-RPC with nothing but the standard library.

Nothing here comes from the broker or its backend, so that what the story shows is what any other program would
see there.
"""

from __future__ import annotations

import xmlrpc.client
from dataclasses import dataclass
from xml.etree import ElementTree

TAG = "WORKSPACE_BROKER"  # the attribute by which the broker knows its VMs again
ALL_OWNERS, FIRST, LAST, ALSO_DONE = -2, -1, -1, -2  # arguments of one.vmpool.infoextended
STATES = {2: "HOLD", 3: "ACTIVE", 5: "SUSPENDED", 6: "DONE", 8: "POWEROFF"}
LCM_STATES = {0: "", 2: "BOOT", 3: "RUNNING"}


@dataclass(frozen=True, slots=True)
class SeenVm:
    """One VM as the front-end shows it; `workspace` is what the broker's tag on it says."""

    vm_id: int
    state: str  # such as "ACTIVE RUNNING": STATE and LCM_STATE
    host: str
    workspace: str


class FrontEnd:
    """One front-end, by its endpoint and a session "user:password"."""

    def __init__(self, endpoint: str, session: str) -> None:
        self._proxy = xmlrpc.client.ServerProxy(endpoint)
        self._session = session

    def vms(self) -> list[SeenVm]:
        """Every VM with a broker's tag, by id; ended ones, too."""
        answer = self._proxy.one.vmpool.infoextended(self._session, ALL_OWNERS, FIRST, LAST, ALSO_DONE)
        assert isinstance(answer, list), answer
        done, document = answer[:2]
        if not done:
            raise RuntimeError(f"OpenNebula refuses to show its VMs: {document}")
        found = ElementTree.fromstring(document).iterfind("VM")
        tagged = (vm for vm in found if vm.find(f"USER_TEMPLATE/{TAG}") is not None)
        return sorted(map(_seen, tagged), key=lambda vm: vm.vm_id)

    def vms_of(self, workspace_uid: str) -> list[SeenVm]:
        """Those of one workspace."""
        return [vm for vm in self.vms() if vm.workspace == workspace_uid]


def _seen(vm: ElementTree.Element) -> SeenVm:
    state, lcm_state = (int(vm.findtext(key, "-1")) for key in ("STATE", "LCM_STATE"))
    words = (STATES.get(state, f"STATE {state}"), LCM_STATES.get(lcm_state, f"LCM_STATE {lcm_state}"))
    return SeenVm(
        vm_id=int(vm.findtext("ID", "-1")),
        state=" ".join(filter(None, words)),
        host=vm.findtext("HISTORY_RECORDS/HISTORY[last()]/HOSTNAME", ""),
        workspace=vm.findtext(f"USER_TEMPLATE/{TAG}/WORKSPACE", ""),
    )
