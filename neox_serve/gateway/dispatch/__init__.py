"""The gateway's side of both links: places requests on replicas and returns their output.

It may import `core`, `link` and `wire`, and knows nothing of the rest of the gateway, which sees only `protocol`. Start with
`link_dispatcher.LinkDispatcher`, then `placement` (where a request goes) and `routed_stream` (the life of a generation).
"""
