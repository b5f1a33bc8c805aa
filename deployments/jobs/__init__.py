"""Entry points of jobs that run beside the serving application."""
