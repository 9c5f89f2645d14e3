"""Takes the persisted tasks, drives each pool's backend, observes, and lets leases begin and end."""
