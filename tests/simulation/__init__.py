"""Simulations of the core's policies on recorded traffic, in simulated time: minutes take seconds."""
