"""The commands that need only a gateway, one module per subject.

The modules import slow packages (grpc, rich, numpy) inside their functions, so that help and completion stay quick.
"""
