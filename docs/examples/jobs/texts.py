"""Writes calibration.txt and held_out.txt from Python's standard library: texts to quantize the built-in model with."""

import pathlib
import sysconfig

files = sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("*.py"))
pathlib.Path("calibration.txt").write_text("".join(file.read_text(errors="replace") for file in files[::7]))
pathlib.Path("held_out.txt").write_text(files[3].read_text())
