"""The part of the `neox-serve` command that needs only a gateway: what a tenant runs on a machine without the server.

It is installed on its own as `neox-serve-client`, and as part of the server. It may import neox_serve.client, neox_serve.wire,
neox_serve.core and the generated code, and runs on Python 3.10 and later. Start reading at app.py, which names the commands;
installation.py says what the server's installation adds to them.
"""
