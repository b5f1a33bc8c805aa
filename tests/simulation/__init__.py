"""The core's policies in simulated time, on traffic that was recorded. Nothing here waits: minutes take seconds."""
