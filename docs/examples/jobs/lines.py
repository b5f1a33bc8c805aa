"""Prints 600 chats that teach a model to say what kind of statement a line of Python is, one JSON line each."""

import json
import pathlib
import random
import sysconfig

KINDS = {"def": "function", "class": "class", "import": "import", "for": "loop", "if": "condition"}

lines = sorted(
    {
        line.strip()
        for file in pathlib.Path(sysconfig.get_path("stdlib")).glob("*.py")
        for line in file.read_text(errors="replace").splitlines()
        if len(line) < 60
    }
)
chats = [
    [
        {"role": "user", "content": f"What is this line of Python? {line}"},
        {"role": "assistant", "content": KINDS[line.split()[0]]},
    ]
    for line in lines
    if line and line.split()[0] in KINDS
]
for chat in random.Random(0).sample(chats, 600):
    print(json.dumps({"messages": chat}))
