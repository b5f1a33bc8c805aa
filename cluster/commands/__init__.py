"""The commands that need the server, one module per subject. Those that need only a gateway are in `neox_serve.cli.commands`.

The modules import slow packages inside their functions, so that help and completion stay quick.
"""
