"""A laboratory of emulated Xen hosts: built from Debian packages, run by QEMU in software, on loopback only.

`image` builds what a host boots, once for the same inputs; `host` runs one; `setup` runs several together; `programs`
sees to what this machine must have; `run` is `make test-xen`. `python -m tests.xen.lab` is its command line.
It knows nothing of the broker.
"""
