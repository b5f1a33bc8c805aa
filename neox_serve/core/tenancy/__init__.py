"""Rules about tenants: roles, API keys, quotas and tamper-evident usage records.

Storage is in `neox_serve.tenancy`. Imports only the core. Start with `tenants`, then `quota`.
"""
