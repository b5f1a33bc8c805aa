"""Evaluation as a batch job: tasks of lm-evaluation-harness, asked of the running cluster.

`run` describes a run, without the harness; `cluster_model` is the harness's view of the cluster; `__main__` runs it.
"""
