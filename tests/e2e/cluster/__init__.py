"""Tests of complete clusters, and of every command in the documentation."""
