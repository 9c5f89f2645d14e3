"""one.image.*, one.vn.*, one.template.* and their pools.

Responsible for what VMs are made of. Invariant: an image in use is not deleted, and a name is its owner's
only once. Leases and images in use are `devices`'.
"""

from __future__ import annotations

from backends.opennebula.standin import documents
from backends.opennebula.standin.errors import Refusal
from backends.opennebula.standin.frontend import Request
from backends.opennebula.standin.permissions import Right
from backends.opennebula.standin.registry import Reply, method
from backends.opennebula.standin.seed import add_image, add_network, add_range, add_vm_template
from backends.opennebula.standin.template import whole
from backends.opennebula.standin.vm_methods import allocate, read_template, selected


@method("one.image.allocate", str, int, optional=(False,))
def image_allocate(request: Request, text: str, datastore_id: int, _no_check: bool) -> Reply:
    """Allocate a new image"""
    world = request.world
    given = read_template(text, Refusal.INTERNAL)
    datastore = request.find(world.datastores, datastore_id)
    what = "Error allocating a new image."
    size = whole(given.get("SIZE"))
    if size is None and not given.get("PATH"):
        raise Refusal(Refusal.INTERNAL, "Cannot parse image SIZE: Wrong number or missing SIZE attribute.")
    if datastore.is_system:
        raise Refusal(Refusal.ALLOCATE, f"{what} New images can only be allocated in a files or image datastore.")
    name = given.get("NAME")
    for image in world.images.values():
        if image.name == name and image.uid == request.user.id:
            raise Refusal(Refusal.ALLOCATE, f"{what} NAME is already taken by IMAGE {image.id}.")
    image = add_image(
        world,
        name,
        size or 1024,
        given.get("TYPE", "OS"),
        datastore_id,
        request.user,
        persistent=given.get("PERSISTENT").upper() == "YES",
        path=given.get("PATH"),
    )
    return image.id


@method("one.image.info", int, optional=(False,))
def image_info(request: Request, image_id: int, _decrypt: bool) -> Reply:
    """Retrieve information for an image"""
    return documents.image(request.world, request.owned(request.world.images, image_id, Right.USE))


@method("one.imagepool.info", int, int, int)
def imagepool_info(request: Request, who: int, start: int, end: int) -> Reply:
    """Retrieve information for all or part of the images"""
    found = selected(request, request.world.images.newest_first(), "image", who, start, end)
    return documents.pool("IMAGE_POOL", (documents.image(request.world, item) for item in found))


@method("one.image.delete", int, optional=(False,))
def image_delete(request: Request, image_id: int, _force: bool) -> Reply:
    """Delete an image"""
    image = request.owned(request.world.images, image_id, Right.MANAGE)
    if image.vms:
        raise Refusal(Refusal.ACTION, f"Cannot delete image, there are {len(image.vms)} VMs using it.")
    del request.world.images[image_id]
    return image_id


@method("one.vn.allocate", str, int)
def vn_allocate(request: Request, text: str, cluster_id: int) -> Reply:
    """Allocate a new virtual network"""
    world = request.world
    given = read_template(text, Refusal.INTERNAL)
    if "VN_MAD" not in given:
        raise Refusal(Refusal.INTERNAL, "No VN_MAD in template for Virtual Network.")
    cluster = request.find(world.clusters, 0 if cluster_id == -1 else cluster_id)
    return add_network(world, given, request.user, {cluster.id}).id


@method("one.vn.info", int, optional=(False,))
def vn_info(request: Request, network_id: int, _decrypt: bool) -> Reply:
    """Retrieve information for a virtual network"""
    network = request.owned(request.world.networks, network_id, Right.USE)
    return documents.network(request.world, network, in_pool=False)


@method("one.vnpool.info", int, int, int)
def vnpool_info(request: Request, who: int, start: int, end: int) -> Reply:
    """Retrieve information for all or part of the virtual networks"""
    found = selected(request, request.world.networks.newest_first(), "network", who, start, end)
    return documents.pool("VNET_POOL", (documents.network(request.world, item, in_pool=True) for item in found))


@method("one.vn.add_ar", int, str)
def vn_add_ar(request: Request, network_id: int, text: str) -> Reply:
    """Add an address range to a virtual network"""
    network = request.owned(request.world.networks, network_id, Right.ADMIN)
    for vector in read_template(text, Refusal.INTERNAL).vectors("AR"):
        add_range(network, vector)
    return network_id


@method("one.vn.delete", int)
def vn_delete(request: Request, network_id: int) -> Reply:
    """Delete a virtual network"""
    network = request.owned(request.world.networks, network_id, Right.ADMIN)
    if any(address_range.leases for address_range in network.ranges):
        raise Refusal(
            Refusal.ACTION,
            "Cannot delete virtual network. Can not remove a virtual network with leases in use",
        )
    del request.world.networks[network_id]
    return network_id


@method("one.template.allocate", str)
def template_allocate(request: Request, text: str) -> Reply:
    """Allocate a new template"""
    given = read_template(text, Refusal.INTERNAL)
    return add_vm_template(request.world, given.get("NAME"), given, request.user).id


@method("one.template.info", int, optional=(False, False))
def template_info(request: Request, template_id: int, _extended: bool, _decrypt: bool) -> Reply:
    """Retrieve information for a template"""
    template = request.owned(request.world.templates, template_id, Right.USE)
    return documents.vm_template(request.world, template)


@method("one.templatepool.info", int, int, int)
def templatepool_info(request: Request, who: int, start: int, end: int) -> Reply:
    """Retrieve information for all or part of the templates"""
    found = selected(request, request.world.templates.newest_first(), "template", who, start, end)
    return documents.pool("VMTEMPLATE_POOL", (documents.vm_template(request.world, item) for item in found))


@method("one.template.delete", int, optional=(False,))
def template_delete(request: Request, template_id: int, _images: bool) -> Reply:
    """Delete a template"""
    request.owned(request.world.templates, template_id, Right.MANAGE)
    del request.world.templates[template_id]
    return template_id


@method("one.template.instantiate", int, str, optional=(False, "", False))
def template_instantiate(
    request: Request, template_id: int, name: str, hold: bool, extra: str, _persistent: bool
) -> Reply:
    """Make a Virtual Machine of a template"""
    template = request.owned(request.world.templates, template_id, Right.USE).template.copy()
    template.merge(read_template(extra, Refusal.INTERNAL))
    template.set("NAME", name)
    template.set("TEMPLATE_ID", str(template_id))
    return allocate(request, template, hold, Refusal.ALLOCATE)
