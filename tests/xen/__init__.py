"""Tests on real Xen: two emulated hosts of tests/xen/lab. `make test-xen` runs them; plain `make test` does not."""
