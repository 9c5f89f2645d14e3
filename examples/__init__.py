"""What to look at first: the demo (`make demo`) and a commented configuration (broker.toml)."""
