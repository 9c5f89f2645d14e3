"""Hosts driven through libvirt: Xen, KVM, and libvirt's test driver."""
