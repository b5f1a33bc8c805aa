"""One module for each group of RPCs: from a decoded message to a response.

Handlers return or raise ServeError, and know nothing of status codes. They may import the requests package, `gateway.dispatch.protocol` and
the types of `gateway.server.calls`. Start reading in `generation`.
"""
