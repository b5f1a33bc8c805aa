"""A load generator for whatever streams tokens."""
