"""A node as a backend is told of it."""

from __future__ import annotations

from backends.base import DiskSpec, Identity, NicSpec, NodeSpec
from broker.core.model import Node, State, Workspace


def node_spec(workspace: Workspace, node: Node, identity: Identity) -> NodeSpec:
    """Everything needed to make the node on its host."""
    wanted = workspace.node_set(node)
    return NodeSpec(
        identity=identity,
        name=f"{workspace.id}-{node.index}",
        host=node.host,
        amounts=wanted.amounts,
        image=wanted.image,
        nics=tuple(NicSpec(network=nic.network, name=nic.name, addresses=nic.addresses) for nic in wanted.nics),
        disks=tuple(
            DiskSpec(image=disk.image, size_mib=disk.size_mib, device=disk.device, read_only=disk.read_only)
            for disk in wanted.disks
        ),
        user_data=wanted.user_data,
        ssh_public_keys=wanted.ssh_public_keys,
        parameters={
            key: value.value
            for key, value in workspace.parameters.items()
            if not key.startswith("core:") and key not in workspace.ignored_parameters
        },
        start_paused=workspace.initial_state is State.PAUSED,
    )
