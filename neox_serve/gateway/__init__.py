"""The gateway process: the only part of the cluster that clients see.

It may import everything below it (transport, link, engine, wire, tenancy, model, core), but never the router or the replica. Start reading
in `server.server`, then follow a call through `server.runner`, `handlers.generation` and `dispatch`.
"""
