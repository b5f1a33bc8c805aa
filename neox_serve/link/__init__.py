"""What both sides of an internal gRPC link share: channels, streams with one writer, and reconnection.

It imports nothing of `gateway`, `router` or `replica`, which build on it. Start with `streams`; `router_link_client` is the peers' side of
the link to the router.
"""
