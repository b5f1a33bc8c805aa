"""Which replica holds which prompt prefixes in its KV cache.

`block_hashes` names blocks of a prompt, `block_ledger` tracks one engine's cache, and `block_index` combines all replicas for routing.
Imports only the core. Start with `block_hashes`.
"""
