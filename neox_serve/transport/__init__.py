"""The server side of gRPC on asyncio and h2. One turn of the event loop writes all frames of a connection to the socket at once.

grpc.aio passes each message to its core separately, which costs a system call, a completion and a wake-up of another thread for every token
of every stream. Here a token costs one DATA frame in a buffer that all streams of the connection share.

The package imports nothing else of neox_serve. Start reading in `connection`, then `call` and `sending`.
"""
