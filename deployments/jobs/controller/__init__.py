"""The job controller: has Ray do the jobs that are in the database, and records their progress and their usage.

May import Ray (only in `ray_runs`), the job store and the descriptions of runs, but none of the libraries that do the work. Start with
`controller`; `commands` says what is run for each kind of job.
"""
