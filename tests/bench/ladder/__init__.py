"""The overhead ladder: what each part adds to a token's way, from a bare gRPC server up to the whole of neox-serve on Ray.

Every rung is a set of real processes with the same fake engine, speaks the same StreamGenerate, and is measured by the same load
generator. The engine stamps each token with the moment of its step; what a rung costs is how much later the token is at the client, and
the CPU time that its processes took.
"""
