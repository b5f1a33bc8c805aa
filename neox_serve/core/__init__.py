"""The pure core: types, errors, and the rules for scheduling, quotas and the life of a request.

Nothing here does I/O or reads a clock: functions take `now_s` and `rng` as arguments and return decisions, which the processes carry out.
It imports only the standard library. Start with `types`, then `scheduling.admissions`.
"""
