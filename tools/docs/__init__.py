"""Generates the reference pages in docs/reference from the settings, the protos and the commands.

`python -m tools.docs` (`make reference`) writes them, and a unit test fails if they are stale. It may import every package of the project.
Start in `pages`, which lists the files; each of `configuration`, `protocol` and `commands` renders one source.
"""
