"""Protobuf in, protobuf out; says who the caller is and decides nothing."""
