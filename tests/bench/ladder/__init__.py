"""The overhead ladder: the cost that each part adds to a token, from a bare gRPC server to the complete neox-serve on Ray.

Every rung is a set of real processes with the same fake engine. It serves StreamGenerate and is measured by the same load generator. The
engine stamps each token with the time of its step. The cost of a rung is the delay until the token reaches the client, and the CPU time of
its processes. Start reading at `rungs.py`.
"""
