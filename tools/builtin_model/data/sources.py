"""The sources of the training text: pinned packages with their licences, and how they are downloaded.

Only package registries are used, through their ordinary clients (`pip download`, `apt-get download`), and only text whose licence allows
the redistribution of derived works.
"""

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DOC_PACKAGE = "python3.11-doc"
"""Debian package with Python's documentation."""


@dataclass(frozen=True, slots=True)
class Package:
    """A pinned wheel on PyPI."""

    name: str
    """Name of the package."""
    version: str
    """Pinned version."""
    licence: str
    """Licence as an SPDX identifier."""
    keep_fraction: float = 1.0
    """Fraction of the files that is used, selected by a hash, so that a large package does not dominate the corpus."""

    def __post_init__(self) -> None:
        if not 0.0 < self.keep_fraction <= 1.0:
            raise ValueError(f"keep_fraction of {self.name} is {self.keep_fraction}; it must be greater than 0 and at most 1")

    @property
    def requirement(self) -> str:
        """The pin as a requirement for pip."""
        return f"{self.name}=={self.version}"


PACKAGES: tuple[Package, ...] = (
    Package("aiohttp", "3.12.15", "Apache-2.0"),
    Package("attrs", "25.3.0", "MIT"),
    Package("black", "25.1.0", "MIT"),
    Package("bokeh", "3.7.3", "BSD-3-Clause", keep_fraction=0.5),
    Package("celery", "5.5.3", "BSD-3-Clause"),
    Package("click", "8.2.1", "BSD-3-Clause"),
    Package("dask", "2025.7.0", "BSD-3-Clause"),
    Package("django", "5.2.4", "BSD-3-Clause", keep_fraction=0.8),
    Package("fastapi", "0.116.1", "MIT"),
    Package("flask", "3.1.1", "BSD-3-Clause"),
    Package("httpx", "0.28.1", "BSD-3-Clause"),
    Package("ipython", "9.4.0", "BSD-3-Clause"),
    Package("jinja2", "3.1.6", "BSD-3-Clause"),
    Package("more-itertools", "10.7.0", "MIT"),
    Package("mypy", "1.17.1", "MIT", keep_fraction=0.5),
    Package("networkx", "3.5", "BSD-3-Clause", keep_fraction=0.6),
    Package("nltk", "3.9.1", "Apache-2.0", keep_fraction=0.5),
    Package("numpy", "2.3.2", "BSD-3-Clause", keep_fraction=0.7),
    Package("pandas", "2.3.1", "BSD-3-Clause", keep_fraction=0.8),
    Package("pydantic", "2.11.7", "MIT"),
    Package("pygments", "2.19.2", "BSD-2-Clause", keep_fraction=0.15),
    Package("pytest", "8.4.1", "MIT"),
    Package("requests", "2.32.4", "Apache-2.0"),
    Package("rich", "14.1.0", "MIT"),
    Package("scikit-learn", "1.7.1", "BSD-3-Clause", keep_fraction=0.5),
    Package("scipy", "1.16.1", "BSD-3-Clause", keep_fraction=0.3),
    Package("scrapy", "2.13.3", "BSD-3-Clause"),
    Package("sphinx", "8.2.3", "BSD-2-Clause", keep_fraction=0.5),
    Package("sqlalchemy", "2.0.43", "MIT", keep_fraction=0.4),
    Package("starlette", "0.47.2", "BSD-3-Clause"),
    Package("statsmodels", "0.14.5", "BSD-3-Clause", keep_fraction=0.3),
    Package("sympy", "1.14.0", "BSD-3-Clause", keep_fraction=0.2),
    Package("tornado", "6.5.2", "Apache-2.0"),
    Package("trio", "0.30.0", "MIT"),
    Package("twisted", "25.5.0", "MIT", keep_fraction=0.5),
    Package("urllib3", "2.5.0", "MIT"),
    Package("werkzeug", "3.1.3", "BSD-3-Clause"),
    Package("xarray", "2025.7.1", "Apache-2.0"),
)
"""Packages whose code is in the training text."""


def download_package(package: Package, folder: Path) -> Path:
    """Downloads the pinned wheel to `folder` if it is not there, and returns its path.

    Raises RuntimeError if pip cannot download the wheel.
    """
    prefix = package.requirement.replace("==", "-").replace("-", "_").lower()
    found = _find_wheel(prefix, folder)
    if found is not None:
        return found
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", "3.11", "--dest", str(folder), package.requirement]
    outcome = subprocess.run(command, check=False, capture_output=True, text=True)
    found = _find_wheel(prefix, folder)
    if found is None:
        raise RuntimeError(f"pip could not download {package.requirement}: {outcome.stderr.strip()[-500:]}")
    return found


def _find_wheel(prefix: str, folder: Path) -> Path | None:
    """Returns the wheel in `folder` whose normalized file name starts with `prefix`, or None."""
    for path in sorted(folder.glob("*.whl")):
        if path.name.replace("-", "_").lower().startswith(prefix + "_"):
            return path
    return None


def wheel_sources(wheel: Path) -> Iterator[tuple[str, bytes]]:
    """Yields the path and content of each Python file in a wheel, in path order."""
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".py"):
                yield name, archive.read(name)


def download_documentation(folder: Path) -> Path | None:
    """Downloads Debian's Python documentation, unpacks it under `folder`, and returns the folder with its reST sources.

    Returns None if apt-get or dpkg-deb is missing or fails.
    """
    unpacked = folder / "unpacked"
    if not unpacked.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["apt-get", "download", DOC_PACKAGE], cwd=folder, check=True, capture_output=True)
            archive = next(folder.glob(f"{DOC_PACKAGE}_*.deb"))
            subprocess.run(["dpkg-deb", "-x", str(archive), str(unpacked)], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError, StopIteration):
            return None
    return next(iter(sorted(unpacked.glob("usr/share/doc/*/html/_sources"))), None)
