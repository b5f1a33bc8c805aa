"""Prints a JSON line for each function of a few standard modules: its name as the id, and the first line of its documentation."""

import inspect
import json
import math
import os.path
import statistics
import textwrap

for module in (json, math, os.path, statistics, textwrap):
    for name, function in inspect.getmembers(module, inspect.isroutine):
        documentation = inspect.getdoc(function)
        if documentation and not name.startswith("_"):
            print(json.dumps({"id": f"{module.__name__}.{name}", "text": documentation.splitlines()[0]}))
