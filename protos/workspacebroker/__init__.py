"""The protobuf package workspacebroker; the code below v1 is generated from the .proto files beside it."""
