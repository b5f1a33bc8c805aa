"""Batch jobs without any I/O: what each kind of job does, its life cycle, and the document that describes it.

Imports only the standard library and `neox_serve.core`. Start with `work` (the kinds of work, each defined in a module of its own), then
`job` (the states of a job and what to do next) and `document` (the JSON form that is stored and passed to processes).
"""
