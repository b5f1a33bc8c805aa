"""Evaluation: tasks of lm-evaluation-harness, whose requests go to the running cluster.

May import the evaluation harness and the client. Start with `run` (the description, without the harness) and `__main__`; `cluster_model` is
the harness's view of the cluster.
"""
