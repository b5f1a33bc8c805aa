"""Policies by the names that settings use."""
