"""Writes docs/reference, or the folder that the argument names."""

import sys
from pathlib import Path

from tools.docs.pages import ROOT, reference


def main() -> None:
    """Writes every generated file of the reference."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "reference"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in reference().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
