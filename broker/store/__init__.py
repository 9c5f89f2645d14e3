"""What survives a crash: records and transactions on a file."""
