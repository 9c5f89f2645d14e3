"""Backends: one package or module for each kind of hypervisor pool; none of them knows the broker."""
