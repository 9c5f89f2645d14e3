"""Replays workload traces through the whole broker on a clock that jumps, without a port and without a file."""
