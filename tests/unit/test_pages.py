"""Page tokens: good for the list they were issued for, and for nothing else."""

from __future__ import annotations

import pytest
from workspacebroker.v1 import pool_service_pb2 as pools_pb
from workspacebroker.v1 import workspace_service_pb2 as calls_pb

from broker.api.pages import PageTokens
from broker.core.errors import FieldsInvalid

TOKENS = PageTokens(b"secret")


def request(**fields: object) -> calls_pb.ListWorkspacesRequest:
    given = {"parent": "tenants/acme", "label_selector": {"a": "1", "b": "2"}, **fields}
    return calls_pb.ListWorkspacesRequest(**given)  # type: ignore[arg-type]


def refused(token: str, message: calls_pb.ListWorkspacesRequest, tokens: PageTokens = TOKENS) -> str:
    with pytest.raises(FieldsInvalid) as error:
        tokens.read(token, message)
    (violation,) = error.value.violations
    return violation.path


@pytest.mark.parametrize("position", ["w1", "tenants/a/workspaces/b", "ünï\x00", "x" * 1000])
def test_positions_come_back(position: str) -> None:
    token = TOKENS.issue(position, request())
    assert TOKENS.read(token, request()) == position


def test_nothing_more() -> None:
    assert TOKENS.issue("", request()) == ""
    assert TOKENS.read("", request()) == ""


def test_page_size_may_change_and_map_order_does_not_matter() -> None:
    token = TOKENS.issue("w1", request())
    assert TOKENS.read(token, request(page_size=7, page_token=token, label_selector={"b": "2", "a": "1"})) == "w1"


@pytest.mark.parametrize(
    "other", [{"parent": "tenants/-"}, {"label_selector": {}}, {"states": [4]}, {"pool": "lab"}, {"uids": ["u"]}]
)
def test_other_filters(other: dict[str, object]) -> None:
    assert refused(TOKENS.issue("w1", request()), request(**other)) == "page_token"


def test_other_method() -> None:
    token = TOKENS.issue("h1", pools_pb.ListHostsRequest(parent="pools/a"))
    with pytest.raises(FieldsInvalid):
        TOKENS.read(token, pools_pb.ListImagesRequest(parent="pools/a"))


def test_every_changed_character() -> None:
    token = TOKENS.issue("workspace-7", request())
    for place, character in enumerate(token[:-1]):
        changed = token[:place] + ("A" if character != "A" else "B") + token[place + 1 :]
        assert refused(changed, request()) == "page_token"


@pytest.mark.parametrize("token", ["a", "!!!!", "é", "A" * 5000, "AQ", "\x00", "AQ=="])
def test_nonsense(token: str) -> None:
    assert refused(token, request()) == "page_token"


def test_other_key() -> None:
    assert refused(TOKENS.issue("w1", request()), request(), PageTokens(b"other")) == "page_token"
