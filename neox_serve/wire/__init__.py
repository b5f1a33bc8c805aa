"""Conversion between protobuf messages and core types, and between errors and gRPC statuses.

Nothing else converts messages, so core types never depend on protobuf. The package may import core and the generated code only. Start
reading in `public_messages` for the public API, and in `status` for errors.
"""
