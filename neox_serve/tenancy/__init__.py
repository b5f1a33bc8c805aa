"""Tenants, their keys, what they used and who changed what, in a database."""
