"""Bulk runs: one request for each row of a file, through a gateway or with an engine of the run's own.

May import the client, the gateway's request handlers (for the own engine) and the other modules of `deployments.jobs`.

Start with `run` (the description) and `runner` (the work); `rows` has the format of rows without any I/O, `row_files` the output and
`vector_stores` the databases.
"""
