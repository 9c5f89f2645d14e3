"""Life cycles by many clients while the network to the back end fails, and the sums that must hold afterwards."""
