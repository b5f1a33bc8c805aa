"""A replica's side of both links: serves an engine to gateways, and registers with the router.

It may import `core`, `engine`, `link`, `wire`, `settings` and `telemetry`, but not `gateway` or `router`. Start with
`server.ReplicaServer`; `link_session` is the token path.
"""
