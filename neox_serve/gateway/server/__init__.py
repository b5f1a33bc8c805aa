"""The public gRPC server: what happens to every call, whatever it asks for.

Authentication, limits, deadlines, idempotency, errors, metrics, logs and health. It may import the handlers and the requests package. Start
reading in `server`, then `runner` and `calls`; `methods` lists every RPC with its handler.
"""
