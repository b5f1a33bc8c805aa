"""Tenants, API keys, usage records, the audit log and batch jobs in a database.

The rules are in `neox_serve.core.tenancy`; this package stores and reads. Imports the core and the settings. Start with `platform`, which
opens everything that a gateway uses.
"""
