"""The core's words against the API's enum numbers, each pair once and both ways.

The names are the same on both sides but for the API's prefix; a word without its number would fail at import.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from workspacebroker.v1 import resources_pb2 as pb

from broker.core.answers import Outcome, ReasonCode
from broker.core.demand import Placement
from broker.core.model import Cause, EndAction, NoticeKind, State, ValueKind
from broker.core.views import HostCondition

STATES: Final[Mapping[State, pb.Workspace.State]] = {each: getattr(pb.Workspace, f"STATE_{each}") for each in State}
STATES_IN: Final[Mapping[int, State]] = {number: each for each, number in STATES.items()}
CAUSES: Final[Mapping[Cause, pb.Workspace.Cause]] = {each: getattr(pb.Workspace, f"CAUSE_{each}") for each in Cause}
NOTICE_KINDS: Final[Mapping[NoticeKind, pb.Workspace.Notice.Kind]] = {
    each: getattr(pb.Workspace.Notice, f"KIND_{each}") for each in NoticeKind
}
END_ACTIONS: Final[Mapping[EndAction, pb.LeaseTerms.EndAction]] = {
    each: getattr(pb.LeaseTerms, f"END_ACTION_{each}") for each in EndAction
}
END_ACTIONS_IN: Final[Mapping[int, EndAction]] = {
    pb.LeaseTerms.END_ACTION_UNSPECIFIED: EndAction.TERMINATE,
    **{number: each for each, number in END_ACTIONS.items()},
}
PLACEMENTS: Final[Mapping[Placement | None, pb.NodeSet.Placement]] = {
    None: pb.NodeSet.PLACEMENT_UNSPECIFIED,
    **{each: getattr(pb.NodeSet, f"PLACEMENT_{each}") for each in Placement},
}
PLACEMENTS_IN: Final[Mapping[int, Placement | None]] = {number: each for each, number in PLACEMENTS.items()}
OUTCOMES: Final[Mapping[Outcome, pb.PlacementVerdict.Outcome]] = {
    each: getattr(pb.PlacementVerdict, f"OUTCOME_{each}") for each in Outcome
}
CODES: Final[Mapping[ReasonCode, pb.PlacementVerdict.Reason.Code]] = {
    each: getattr(pb.PlacementVerdict.Reason, f"CODE_{each}") for each in ReasonCode
}
VALUE_KINDS: Final[Mapping[ValueKind, pb.ParameterSpec.Kind]] = {
    each: getattr(pb.ParameterSpec, f"KIND_{each}") for each in ValueKind
}
HOST_STATES: Final[Mapping[HostCondition, pb.Host.State]] = {
    each: getattr(pb.Host, f"STATE_{each}") for each in HostCondition
}
CAPABILITIES: Final[Mapping[str, pb.Capability]] = {
    name.removeprefix("CAPABILITY_"): getattr(pb, name) for name, _ in pb.Capability.items()
}
