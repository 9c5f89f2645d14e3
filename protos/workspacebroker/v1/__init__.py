"""Generated code of workspacebroker.v1, the public API of the broker (see build_hook.py)."""
