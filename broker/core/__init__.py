"""Pure rules: no I/O, no grpc, no protobuf; imports only itself, the standard library and numpy."""
