"""What handlers share: validation, tokenization and truncation of requests, and collecting their output.

It may import wire, model, core, `gateway.dispatch.protocol` and the types of `gateway.server.calls`. Start reading in `preparing` for the
way of a request to an engine, and in `collecting` for the way back.
"""
