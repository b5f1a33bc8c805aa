"""The router process: admits requests, enforces quotas, and serves the metrics page of the whole cluster.

It may import `core`, `link`, `wire`, `settings` and `telemetry`, but not `gateway` or `replica`. Start with `server.RouterServer`; policy
is in `core.scheduling`.
"""
