"""The workspace broker: leases of VMs over named pools, behind one gRPC API."""
