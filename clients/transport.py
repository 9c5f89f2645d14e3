"""What blocking and asyncio clients share: channel options, rpcs by request, request ids, pauses.

Raises nothing of its own and keeps no connection.
"""

from __future__ import annotations

import random
import time
import uuid
from importlib import resources
from typing import Any

from google.protobuf.message import Message
from workspacebroker.v1 import (
    pool_service_pb2,
    pool_service_pb2_grpc,
    tenant_service_pb2,
    tenant_service_pb2_grpc,
    workspace_service_pb2,
    workspace_service_pb2_grpc,
)

from clients.errors import BrokerError

DEFAULT_SERVER = "127.0.0.1:7443"
CALL_SECONDS = 30.0


def new_request_id() -> str:
    """A fresh id for a mutation."""
    return uuid.uuid4().hex


def channel_options() -> list[tuple[str, Any]]:
    """Options for a channel of one's own: the retry policy, and a prompt return after an outage."""
    config = resources.files("clients").joinpath("service_config.json").read_text(encoding="utf-8")
    return [
        ("grpc.service_config", config),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 5000),
        ("grpc.max_reconnect_backoff_ms", 5000),
    ]


def methods(channel: Any) -> dict[str, Any]:
    """Every rpc by its request message, which is its own; so an rpc added to the API needs nothing here."""
    services = (
        (workspace_service_pb2, "WorkspaceService", workspace_service_pb2_grpc.WorkspaceServiceStub),
        (pool_service_pb2, "PoolService", pool_service_pb2_grpc.PoolServiceStub),
        (tenant_service_pb2, "TenantService", tenant_service_pb2_grpc.TenantServiceStub),
    )
    return {
        method.input_type.full_name: getattr(stub, method.name)
        for module, service, stub_type in services
        for stub in [stub_type(channel)]
        for method in module.DESCRIPTOR.services_by_name[service].methods
    }


def with_request_id(request: Message) -> tuple[Message, str]:
    """A copy that carries a request id, and that id; the request itself where it takes none."""
    fields = request.DESCRIPTOR.fields_by_name
    if "target" not in fields and "request_id" not in fields:
        return request, ""
    copy: Any = type(request)()
    copy.CopyFrom(request)
    holder = copy.target if "target" in fields else copy
    holder.request_id = holder.request_id or new_request_id()
    return copy, holder.request_id


class Outage:
    """The pauses between tries while a broker does not answer."""

    def __init__(self) -> None:
        self.over()

    def over(self) -> None:
        self.on = False
        self._delay = 0.2

    def pause(self, error: BrokerError | None, left: float = float("inf")) -> None:
        """Sleeps; `left` bounds it. Spread, so that the clients of a broker do not come back as one."""
        asked = (error.retry_after if error else None) or 0.0
        time.sleep(min(max(asked, self._delay * random.uniform(0.5, 1.0)), left))
        self.on = True
        self._delay = min(self._delay * 2, 5.0)
