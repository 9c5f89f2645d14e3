"""one.user.*, one.group.*, one.acl.addrule and one.system.*.

Responsible for who there is and what they may have. Invariant: oneadmin is never deleted. A name is
taken once. Passwords are dummies: they are kept as they came.
"""

from __future__ import annotations

from backends.opennebula.standin import documents, quotas
from backends.opennebula.standin.errors import Refusal
from backends.opennebula.standin.frontend import Request
from backends.opennebula.standin.infra_methods import write_template
from backends.opennebula.standin.quotas import Usage
from backends.opennebula.standin.registry import Reply, method
from backends.opennebula.standin.seed import add_group, add_user
from backends.opennebula.standin.state import Group, User, World
from backends.opennebula.standin.vm_methods import read_template

_GROUP_FLAG = 0x2_0000_0000
_VM_RESOURCE = 0x10_0000_0000
_CREATE_RIGHT = 0x8


def _usage(world: World, user: User) -> Usage:
    return quotas.usage_of(world, lambda vm: vm.uid == user.id) if user.id else Usage()


def _group_usage(world: World, group: Group) -> Usage:
    return quotas.usage_of(world, lambda vm: vm.gid == group.id) if group.id else Usage()


@method("one.user.info", int, optional=(False,))
def user_info(request: Request, user_id: int, _decrypt: bool) -> Reply:
    """Retrieve information for a user"""
    user = request.user if user_id == -1 else request.find(request.world.users, user_id)
    if user is not request.user:
        request.admin_only(f"USE USER [{user.id}]")
    return documents.user(request.world, user, _usage(request.world, user))


@method("one.userpool.info")
def userpool_info(request: Request) -> Reply:
    """Retrieve information for all the users"""
    users = request.world.users.newest_first() if request.is_admin else (request.user,)
    return documents.user_pool(request.world, [(user, _usage(request.world, user)) for user in users])


@method("one.user.allocate", str, str, str, optional=([],))
def user_allocate(request: Request, name: str, password: str, driver: str, groups: list[object]) -> Reply:
    """Allocate a new user"""
    world = request.world
    request.admin_only("CREATE USER")
    if not name:
        raise Refusal(Refusal.INTERNAL, "Invalid NAME, it cannot be empty.")
    taken = world.users.named(name)
    if taken is not None:
        raise Refusal(Refusal.INTERNAL, f"NAME is already taken by USER {taken.id}.")
    wanted = groups[0] if groups else 1
    group = request.find(world.groups, wanted if isinstance(wanted, int) else -1)
    return add_user(world, name, password, group.id, driver).id


@method("one.user.delete", int)
def user_delete(request: Request, user_id: int) -> Reply:
    """Delete a user"""
    user = request.find(request.world.users, user_id)
    request.admin_only(f"ADMIN USER [{user_id}]")
    if user.id == 0:
        raise Refusal(Refusal.ACTION, "Cannot delete user. oneadmin cannot be deleted.")
    request.world.departed[user_id] = request.world.users.pop(user_id).name
    return user_id


@method("one.user.update", int, str, optional=(0,))
def user_update(request: Request, user_id: int, text: str, append: int) -> Reply:
    """Replace or append to the template of a user"""
    user = request.find(request.world.users, user_id)
    if user is not request.user:
        request.admin_only(f"MANAGE USER [{user_id}]")
    user.template = write_template(user.template, read_template(text, Refusal.ACTION), append)
    return user_id


@method("one.user.passwd", int, str)
def user_passwd(request: Request, user_id: int, password: str) -> Reply:
    """Change a password"""
    user = request.find(request.world.users, user_id)
    if user is not request.user:
        request.admin_only(f"ADMIN USER [{user_id}]")
    user.password = password
    return user_id


@method("one.user.chgrp", int, int)
def user_chgrp(request: Request, user_id: int, group_id: int) -> Reply:
    """Change the group of a user"""
    user = request.find(request.world.users, user_id)
    group = request.find(request.world.groups, group_id)
    request.admin_only(f"MANAGE USER [{user_id}]")
    user.gid = group.id
    return user_id


@method("one.user.quota", int, str)
def user_quota(request: Request, user_id: int, text: str) -> Reply:
    """Set the quotas of a user"""
    user = request.find(request.world.users, user_id)
    request.admin_only(f"ADMIN USER [{user_id}]")
    user.quota = _limits(text, user.quota)
    return user_id


def _limits(text: str, before: dict[str, float] | None) -> dict[str, float] | None:
    """The whole VM record anew; one of a single cluster leaves the general one alone."""
    vector = read_template(text, Refusal.ACTION).vector("VM")
    return before if vector is None or "CLUSTER_ID" in vector else quotas.read_limits(vector)


@method("one.group.allocate", str)
def group_allocate(request: Request, name: str) -> Reply:
    """Allocate a new group"""
    request.admin_only("CREATE GROUP")
    taken = request.world.groups.named(name)
    if taken is not None:
        raise Refusal(Refusal.ALLOCATE, f"NAME is already taken by GROUP {taken.id}.")
    return add_group(request.world, name).id


@method("one.group.info", int, optional=(False,))
def group_info(request: Request, group_id: int, _decrypt: bool) -> Reply:
    """Retrieve information for a group"""
    group = request.user.gid if group_id == -1 else group_id
    found = request.find(request.world.groups, group)
    return documents.group(request.world, found, _group_usage(request.world, found))


@method("one.group.quota", int, str)
def group_quota(request: Request, group_id: int, text: str) -> Reply:
    """Set the quotas of a group"""
    group = request.find(request.world.groups, group_id)
    request.admin_only(f"ADMIN GROUP [{group_id}]")
    group.quota = _limits(text, group.quota)
    return group_id


@method("one.acl.addrule", str, str, str)
def acl_addrule(request: Request, user: str, resource: str, rights: str) -> Reply:
    """Add an access rule; only the right of a group to create VMs has an effect"""
    request.admin_only("MANAGE ACL")
    try:
        who, what, may = int(user, 16), int(resource, 16), int(rights, 16)
    except ValueError as error:
        raise Refusal(Refusal.INTERNAL, "Wrong hexadecimal number in the rule") from error
    if who & _GROUP_FLAG and what & _VM_RESOURCE and may & _CREATE_RIGHT:
        request.world.creators.add(who & 0xFFFFFFFF)
    return next(request.world.acl_ids)


@method("one.system.version")
def system_version(request: Request) -> Reply:
    """Returns the OpenNebula core version"""
    return request.front.config.version
