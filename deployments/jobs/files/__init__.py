"""Files of jobs: where they are (`storage`) and what is in them (`formats`).

May import fsspec, pyarrow and `deployments.jobs.bulk.rows`. Start with `formats`.
"""
