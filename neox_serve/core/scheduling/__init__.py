"""The router's decisions: who is admitted, who waits, and which replica serves a request.

`admissions` is the entry point. It uses `fair_queue` for the order, `routing` to choose a replica and `cluster_state` for the state of the
cluster. Imports only the core.
"""
