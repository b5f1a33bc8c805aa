"""Generated code of the protocol between our own processes. `make protos` writes `v1`; no one edits it by hand."""
