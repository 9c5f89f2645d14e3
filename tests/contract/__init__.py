"""Contract tests: what another party was recorded to say."""
