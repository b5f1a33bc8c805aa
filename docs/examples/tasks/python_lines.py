"""Writes a task of lm-evaluation-harness, python_lines, into a folder: multiple-choice questions about lines of Python, with their data.

python python_lines.py FOLDER
"""

import json
import pathlib
import random
import sys
import sysconfig

KINDS = {"def": "function", "class": "class", "import": "import", "for": "loop", "if": "condition"}

folder = pathlib.Path(sys.argv[1]).resolve()
folder.mkdir(parents=True, exist_ok=True)
lines = sorted(
    {
        line.strip()
        for file in pathlib.Path(sysconfig.get_path("stdlib")).glob("*.py")
        for line in file.read_text(errors="replace").splitlines()
        if line.split() and line.split()[0] in KINDS and len(line) < 60
    }
)
rows = [{"line": line, "kind": [*KINDS].index(line.split()[0])} for line in random.Random(0).sample(lines, 40)]
data = folder / "python_lines.jsonl"
data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
(folder / "python_lines.yaml").write_text(
    f"""\
task: python_lines
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "Line: {{{{line}}}}\\nKind:"
doc_to_target: kind
doc_to_choice: {json.dumps([*KINDS.values()])}
metric_list:
  - metric: acc
"""
)
