"""What every backend must do, as one suite: subclass `BackendContract` as `Test...` and give it a fixture `rig`.

A rig is a pool with room for a few small nodes on two hosts, and the means to let its time pass. What a pool cannot
do is left out by its capabilities, in agreement with `steps`: a declared action must lead where it says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pytest
from msgspec.structs import replace

from backends.base import (
    UNDO,
    Action,
    Backend,
    BackendRejected,
    Capability,
    Identity,
    NodeSpec,
    Observation,
    ObservedNode,
    OutcomeUnknown,
    Step,
    StepCall,
    TransientBackendError,
)


class Rig(Protocol):
    """A pool to try a backend on."""

    backend: Backend
    other_host: str

    def node(self, number: int = 0) -> NodeSpec:
        """A small node that bears the broker's id, on the first host; another number is another node."""
        ...

    async def settle(self) -> None:
        """Lets pass what the pool needs to finish what it has accepted."""
        ...

    def lose_answer(self, step: Step) -> None:
        """The next such step is carried out, but its answer is lost."""
        ...

    def lose_call(self, step: Step) -> None:
        """The next such step never arrives, and the backend cannot know."""
        ...

    def refuse_once(self, step: Step) -> None:
        """The next such step fails without effect and may be tried again."""
        ...


# Every action, what comes before it, and what it leads to.
PATHS: dict[Action, tuple[tuple[Action, ...], Observation]] = {
    Action.CREATE: ((), Observation.RUNNING),
    Action.PAUSE: ((Action.CREATE,), Observation.PAUSED),
    Action.UNPAUSE: ((Action.CREATE, Action.PAUSE), Observation.RUNNING),
    Action.SUSPEND: ((Action.CREATE,), Observation.SUSPENDED),
    Action.SUSPEND_RELEASE: ((Action.CREATE,), Observation.SUSPENDED),
    Action.RELEASE_SUSPENDED: ((Action.CREATE, Action.SUSPEND), Observation.SUSPENDED),
    Action.RESUME: ((Action.CREATE, Action.SUSPEND), Observation.RUNNING),
    Action.RESUME_RELEASED: ((Action.CREATE, Action.SUSPEND_RELEASE), Observation.RUNNING),
    Action.STOP: ((Action.CREATE,), Observation.OFF),
    Action.STOP_RELEASE: ((Action.CREATE,), Observation.OFF),
    Action.RELEASE_STOPPED: ((Action.CREATE, Action.STOP), Observation.OFF),
    Action.START: ((Action.CREATE, Action.STOP), Observation.RUNNING),
    Action.START_RELEASED: ((Action.CREATE, Action.STOP_RELEASE), Observation.RUNNING),
    Action.REBOOT: ((Action.CREATE,), Observation.RUNNING),
    Action.SAVE: ((Action.CREATE, Action.STOP), Observation.OFF),
    Action.MIGRATE: ((Action.CREATE,), Observation.RUNNING),
    Action.LIVE_MIGRATE: ((Action.CREATE,), Observation.RUNNING),
    Action.TERMINATE: ((Action.CREATE,), Observation.ABSENT),
}
NEEDED = {
    Action.PAUSE: Capability.PAUSE,
    Action.SUSPEND: Capability.SUSPEND,
    Action.STOP: Capability.STOP,
    Action.REBOOT: Capability.REBOOT,
    Action.SAVE: Capability.SAVE_IMAGE,
    Action.MIGRATE: Capability.MIGRATE,
    Action.LIVE_MIGRATE: Capability.LIVE_MIGRATE,
}
MOVES = (Action.MIGRATE, Action.LIVE_MIGRATE)


def call(step: Step, node: NodeSpec, backend_id: str, other_host: str, *, force: bool = False) -> StepCall:
    """One step, with everything any step could want."""
    return StepCall(
        step=step,
        node=node,
        backend_id=backend_id,
        force=force,
        target_host=other_host if step in (Step.MIGRATE, Step.LIVE_MIGRATE) else "",
        image_name="contract-image" if step is Step.SAVE else "",
    )


async def act(
    rig: Rig, action: Action, node: NodeSpec, backend_id: str = "", *, twice: bool = False, force: bool = False
) -> str:
    """Takes all steps of an action (each of them twice) and lets the pool finish; returns the backend id."""
    for step in rig.backend.steps(action):
        for again in range(1 + twice):
            asked = call(step, node, backend_id, rig.other_host, force=force)
            got = await rig.backend.perform(replace(asked, repeated=bool(again)))
            assert not backend_id or got == backend_id, "a VM's id never changes"
            backend_id = got
    await rig.settle()
    return backend_id


async def walk(rig: Rig, actions: Sequence[Action], node: NodeSpec) -> str:
    """Takes several actions in turn."""
    backend_id = ""
    for action in actions:
        backend_id = await act(rig, action, node, backend_id)
    return backend_id


def able(rig: Rig, action: Action) -> bool:
    """Whether the pool can do an action and all that comes before it."""
    return all(rig.backend.steps(one) for one in (*PATHS[action][0], action))


async def one(rig: Rig, node: NodeSpec) -> ObservedNode:
    """The only VM of a node in the pool's document."""
    found = [seen for seen in await rig.backend.observe() if seen.identity == node.identity]
    assert len(found) == 1
    return found[0]


class BackendContract:
    """The suite."""

    def test_capabilities_and_steps_agree(self, rig: Rig) -> None:
        assert rig.backend.steps(Action.CREATE)[-1:], "every pool can make a VM"
        assert rig.backend.steps(Action.TERMINATE), "and end it"
        for action, capability in NEEDED.items():
            assert bool(rig.backend.steps(action)) == (capability in rig.backend.capabilities), action

    def test_what_create_makes_terminate_takes_back(self, rig: Rig) -> None:
        undone = {UNDO[step] for step in rig.backend.steps(Action.CREATE)} - {None}
        assert undone <= set(rig.backend.steps(Action.TERMINATE))

    async def test_an_empty_pool_has_hosts_and_no_nodes(self, rig: Rig) -> None:
        inventory = await rig.backend.inventory()
        names = [host.name for host in inventory.hosts]
        assert {rig.node().host, rig.other_host} <= set(names)
        assert len(set(names)) == len(names)
        for host in inventory.hosts:
            assert host.total["cpu"] > 0
            assert host.total["memory"] > 0
        assert inventory.nodes == ()
        assert not await rig.backend.observe()

    @pytest.mark.parametrize("action", PATHS)
    async def test_an_action_leads_where_it_says(self, rig: Rig, action: Action) -> None:
        if not able(rig, action):
            return
        before, seen = PATHS[action]
        node = rig.node()
        backend_id = await walk(rig, before, node)
        assert await act(rig, action, node, backend_id) == backend_id or not backend_id
        found = await rig.backend.find(node.identity)
        assert found.observation is seen
        if seen is Observation.RUNNING:
            assert found.host == (rig.other_host if action in MOVES else node.host)

    @pytest.mark.parametrize("action", PATHS)
    async def test_every_step_may_be_taken_twice(self, rig: Rig, action: Action) -> None:
        if not able(rig, action):
            return
        before, seen = PATHS[action]
        node = rig.node()
        backend_id = await walk(rig, before, node)
        backend_id = await act(rig, action, node, backend_id, twice=True)
        assert (await rig.backend.find(node.identity, backend_id)).observation is seen
        if seen is not Observation.ABSENT:
            assert (await one(rig, node)).backend_id == backend_id
        # And once more when all is over, as after a restart.
        last = call(rig.backend.steps(action)[-1], node, backend_id, rig.other_host)
        await rig.backend.perform(replace(last, repeated=True))
        await rig.settle()
        assert (await rig.backend.find(node.identity, backend_id)).observation is seen

    async def test_a_node_is_found_by_identity_and_by_id(self, rig: Rig) -> None:
        nodes = [rig.node(number) for number in range(2)]
        ids = [await act(rig, Action.CREATE, node) for node in nodes]
        assert ids[0] != ids[1]
        for node, backend_id in zip(nodes, ids, strict=True):
            for known in ("", backend_id):
                found = await rig.backend.find(node.identity, known)
                assert (found.backend_id, found.identity) == (backend_id, node.identity)
            shown = await one(rig, node)
            assert shown.backend_id == backend_id
            assert shown.amounts["cpu"] == node.amounts["cpu"]
        listed = {seen.backend_id for seen in (await rig.backend.inventory()).nodes}
        assert listed == set(ids)

    async def test_what_is_not_there_is_absent(self, rig: Rig) -> None:
        node = rig.node()
        assert (await rig.backend.find(node.identity)).observation is Observation.ABSENT
        backend_id = await walk(rig, (Action.CREATE, Action.TERMINATE), node)
        for known in ("", backend_id):
            assert (await rig.backend.find(node.identity, known)).observation is Observation.ABSENT
        assert not await rig.backend.observe()

    async def test_another_identity_is_another_vm(self, rig: Rig) -> None:
        node = rig.node()
        backend_id = await act(rig, Action.CREATE, node)
        used_again = replace(node.identity, workspace_uid="0" * 8)  # names come back, a uid never does
        assert (await rig.backend.find(used_again)).observation is Observation.ABSENT
        assert (await rig.backend.find(used_again, backend_id)).observation is Observation.ABSENT

    async def test_another_brokers_vm_is_foreign(self, rig: Rig) -> None:
        node = rig.node()
        theirs = replace(node, identity=Identity(broker_id="another", workspace_uid="u", node_index=0))
        await act(rig, Action.CREATE, theirs)
        inventory = await rig.backend.inventory()
        assert inventory.nodes == ()
        host = next(host for host in inventory.hosts if host.name == node.host)
        assert host.foreign["cpu"] >= node.amounts["cpu"]
        assert host.foreign["memory"] >= node.amounts["memory"]

    async def test_terminating_what_is_gone_is_no_error(self, rig: Rig) -> None:
        node = rig.node()
        backend_id = await walk(rig, (Action.CREATE, Action.TERMINATE), node)
        for known in (backend_id, ""):
            await rig.backend.perform(call(Step.TERMINATE, node, known, rig.other_host, force=True))

    @pytest.mark.parametrize("action", [action for action in PATHS if action is not Action.TERMINATE])
    async def test_every_state_can_be_terminated(self, rig: Rig, action: Action) -> None:
        if not able(rig, action):
            return
        node = rig.node()
        backend_id = await walk(rig, (*PATHS[action][0], action), node)
        await act(rig, Action.TERMINATE, node, backend_id, force=True)
        assert (await rig.backend.find(node.identity, backend_id)).observation is Observation.ABSENT

    async def test_a_step_on_what_is_gone_is_rejected(self, rig: Rig) -> None:
        node = rig.node()
        backend_id = await walk(rig, (Action.CREATE, Action.TERMINATE), node)
        for action in (Action.SUSPEND, Action.STOP, Action.REBOOT):
            for step in rig.backend.steps(action):
                with pytest.raises(BackendRejected):
                    await rig.backend.perform(call(step, node, backend_id, rig.other_host))

    async def test_a_lost_answer_is_found_by_identity(self, rig: Rig) -> None:
        node = rig.node()
        rig.lose_answer(Step.ALLOCATE)
        with pytest.raises(OutcomeUnknown):
            await act(rig, Action.CREATE, node)
        found = await rig.backend.find(node.identity)
        assert found.observation is not Observation.ABSENT
        assert await act(rig, Action.CREATE, node, found.backend_id) == found.backend_id
        assert (await one(rig, node)).observation is Observation.RUNNING

    async def test_a_lost_call_leaves_nothing(self, rig: Rig) -> None:
        node = rig.node()
        rig.lose_call(Step.ALLOCATE)
        with pytest.raises(OutcomeUnknown):
            await act(rig, Action.CREATE, node)
        assert (await rig.backend.find(node.identity)).observation is Observation.ABSENT
        await act(rig, Action.CREATE, node)
        assert (await one(rig, node)).observation is Observation.RUNNING

    async def test_a_transient_error_has_done_nothing(self, rig: Rig) -> None:
        node = rig.node()
        rig.refuse_once(Step.ALLOCATE)
        with pytest.raises(TransientBackendError):
            await act(rig, Action.CREATE, node)
        assert (await rig.backend.find(node.identity)).observation is Observation.ABSENT
        await act(rig, Action.CREATE, node)

    async def test_released_capacity_comes_back_on_another_host(self, rig: Rig) -> None:
        for release, again in (
            (Action.SUSPEND_RELEASE, Action.RESUME_RELEASED),
            (Action.STOP_RELEASE, Action.START_RELEASED),
        ):
            if not able(rig, again):
                continue
            node = rig.node()
            backend_id = await walk(rig, (Action.CREATE, release), node)
            elsewhere = replace(node, host=rig.other_host)
            await act(rig, again, elsewhere, backend_id)
            found = await rig.backend.find(node.identity, backend_id)
            assert (found.observation, found.host) == (Observation.RUNNING, rig.other_host)
            await act(rig, Action.TERMINATE, elsewhere, backend_id, force=True)

    async def test_a_saved_image_is_listed(self, rig: Rig) -> None:
        if not able(rig, Action.SAVE):
            return
        await walk(rig, (*PATHS[Action.SAVE][0], Action.SAVE), rig.node())
        images = (await rig.backend.inventory()).images
        if images is not None:
            assert [image.ready for image in images if image.name == "contract-image"] == [True]
