"""Clients of the API, none of them closer to it than a stranger's."""
