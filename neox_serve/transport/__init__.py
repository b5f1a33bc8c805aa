"""gRPC's server side on asyncio and h2: what every stream of a connection has to say in one turn of the loop leaves in one socket write.

grpc.aio hands each message to its core by itself: a system call, a completion and a wake-up of another thread for every token of every
stream. Here a token costs one DATA frame in a buffer, whichever of the connection's streams it is for.
"""
