"""Bytes that stand for a message: read back by protobuf they are what a message of the same content would be."""

from __future__ import annotations

import pytest
from workspacebroker.v1 import resources_pb2 as pb
from workspacebroker.v1 import workspace_service_pb2 as api

from broker.api.wire import embedded, number_of


@pytest.mark.parametrize("length", [0, 1, 127, 128, 129, 16_383, 16_384, 2_097_151, 2_097_152])
def test_a_message_of_any_length_is_read_back(length: int) -> None:
    workspace = pb.Workspace(display_name="x" * length)
    answer = api.GetWorkspaceResponse.FromString(embedded(1, workspace.SerializeToString()))
    assert answer == api.GetWorkspaceResponse(workspace=workspace)


def test_a_list_and_what_stands_beside_it_are_read_back_in_order() -> None:
    workspaces = [pb.Workspace(name=f"tenants/t/workspaces/w{number}") for number in range(3)]
    number = number_of(api.ListWorkspacesResponse, "workspaces")
    wire = api.ListWorkspacesResponse(revision=7, next_page_token="on").SerializeToString()
    wire += b"".join(embedded(number, each.SerializeToString()) for each in workspaces)
    expected = api.ListWorkspacesResponse(revision=7, next_page_token="on", workspaces=workspaces)
    assert api.ListWorkspacesResponse.FromString(wire) == expected


ALONE = [
    api.CreateWorkspaceResponse,
    api.GetWorkspaceResponse,
    api.UpdateWorkspaceResponse,
    api.StartWorkspaceResponse,
    api.PauseWorkspaceResponse,
    api.UnpauseWorkspaceResponse,
    api.SuspendWorkspaceResponse,
    api.ResumeWorkspaceResponse,
    api.StopWorkspaceResponse,
    api.RebootWorkspaceResponse,
    api.TerminateWorkspaceResponse,
    api.SaveNodeResponse,
    api.WaitWorkspaceResponse,
]


@pytest.mark.parametrize("answer", ALONE, ids=lambda answer: answer.DESCRIPTOR.name)
def test_the_workspace_is_the_first_field_of_every_answer_that_has_one(answer: type[api.GetWorkspaceResponse]) -> None:
    assert number_of(answer, "workspace") == 1
