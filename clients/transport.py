"""What blocking and asyncio clients share: channel options, proxies, rpcs by request, request ids, pauses.

Raises nothing of its own and keeps no connection.
"""

from __future__ import annotations

import ipaddress
import os
import random
import re
import threading
import uuid
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

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


def channel_options(server: str = DEFAULT_SERVER) -> list[tuple[str, Any]]:
    """Options for a channel of one's own: the retry policy, a prompt return after an outage, no proxy on loopback."""
    config = resources.files("clients").joinpath("service_config.json").read_text(encoding="utf-8")
    return [
        ("grpc.enable_http_proxy", 0 if is_loopback(server) else 1),
        ("grpc.service_config", config),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 5000),
        ("grpc.max_reconnect_backoff_ms", 5000),
    ]


def is_loopback(server: str) -> bool:
    """Whether a server is on this machine, by its address alone: nothing is looked up."""
    if server.startswith(("unix:", "unix-abstract:")):
        return True
    host = _host(server)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _host(server: str) -> str:
    """The host in HOST, HOST:PORT, [ADDRESS]:PORT, or one of these behind gRPC's dns: or ipv4:."""
    address = re.sub(r"^(?:dns:(?://[^/]*/)?|ipv[46]:)", "", server)
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.partition(":")[0] if address.count(":") == 1 else address


def proxy_for(server: str) -> str:
    """VARIABLE=URL of the proxy in the environment that gRPC goes through to a server; empty where it does not."""
    if is_loopback(server):
        return ""
    setting = os.environ.get  # of lower-case names only, as gRPC reads them
    exempt = setting("no_grpc_proxy") or setting("no_proxy") or ""
    if any(_host(server).endswith(entry.strip()) for entry in exempt.split(",") if entry.strip()):
        return ""
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        if url := setting(name):
            return f"{name}={urlsplit(url)._replace(netloc=urlsplit(url).netloc.rpartition('@')[2]).geturl()}"
    return ""


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
    """The pauses between tries while a broker does not answer; `stop` ends one early."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self.over()

    def over(self) -> None:
        self.on = False
        self._delay = 0.2

    def pause(self, error: BrokerError | None, left: float = float("inf")) -> None:
        """Sleeps; `left` bounds it. Spread, so that the clients of a broker do not come back as one."""
        asked = (error.retry_after if error else None) or 0.0
        self._stop.wait(min(max(asked, self._delay * random.uniform(0.5, 1.0)), left))
        self.on = True
        self._delay = min(self._delay * 2, 5.0)
