"""Evaluation as a batch job: tasks of lm-evaluation-harness, asked of the running cluster.

`arguments` says what is to be done, without the harness; `cluster_model` is the harness's view of the cluster; `__main__` runs it.
"""
