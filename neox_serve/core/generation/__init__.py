"""The life of a generation as transition tables: `call_life` for a client's call, `request_life` for a request to a replica.

`continuation` decides which streams another replica can continue; `beam_search` is the search itself. Imports only the core.
"""
