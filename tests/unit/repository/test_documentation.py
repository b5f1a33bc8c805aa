"""The documentation site builds strictly, and the pages name files and targets that exist."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
ROOT_PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
PAGES = [*(ROOT / name for name in ROOT_PAGES), *sorted(DOCS.rglob("*.md"))]


def build(project: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Runs the build of `make docs`."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", "mkdocs.yml", "--site-dir", str(site)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=project, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of what the site is built from."""
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    shutil.copytree(DOCS, tmp_path / "docs")
    return tmp_path


def test_site_builds_without_a_warning(project: Path) -> None:
    done = build(project, project / "site")
    assert done.returncode == 0, done.stderr
    assert (project / "site" / "index.html").is_file()


def test_site_with_broken_pages_fails_and_names_each_fault(project: Path) -> None:
    (project / "docs" / "orphan.md").write_text("# A page outside the navigation\n", encoding="utf-8")
    (project / "docs" / "index.md").write_text("[a link](missing.md) [an anchor](glossary.md#missing)\n", encoding="utf-8")
    done = build(project, project / "site")
    assert done.returncode != 0
    warnings = [line for line in done.stderr.splitlines() if "missing" in line or "orphan.md" in line]
    assert len(warnings) == 3


@pytest.mark.parametrize("name", ROOT_PAGES)
def test_page_of_the_root_links_to_files_that_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_names_modules_and_folders_that_exist(page: Path) -> None:
    pattern = r"`((?:neox_serve|deployments|cluster|autoscaling|tools|tests|infra|protos|docs)/[A-Za-z0-9_./-]+)`"
    names = re.findall(pattern, page.read_text(encoding="utf-8"))
    assert [name for name in names if not (ROOT / name).exists() and not (ROOT / "protos" / name).exists()] == []


@pytest.mark.parametrize("page", sorted((DOCS / "developer").glob("*.md")), ids=lambda page: page.name)
def test_developer_page_names_modules_that_exist(page: Path) -> None:
    modules = {path.name for package in ("neox_serve", "autoscaling", "deployments") for path in (ROOT / package).rglob("*.py")}
    assert set(re.findall(r"`([a-z_]+\.py)`", page.read_text(encoding="utf-8"))) <= modules


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_names_make_targets_that_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    named = set(re.findall(r"(?:^    |`)make ([a-z][a-z-]+)", page.read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_names_settings_that_exist(page: Path) -> None:
    properties = json.loads((DOCS / "reference" / "settings.schema.json").read_text(encoding="utf-8"))["properties"]
    reference = (DOCS / "reference" / "configuration.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:" + "|".join(properties) + r")\.[a-z_.]+)(?:[:=][^`]*)?`", page.read_text(encoding="utf-8"))
    others = re.compile(
        r"ray\.(serve|data)\..*|.*\.jsonl|scaling\.(TRAFFIC|recovery|simulated|held_out|hour).*"
    )  # modules of Ray, files, goals
    assert [name for name in named if f"`{name}`" not in reference and not others.fullmatch(name)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_names_options_that_exist(page: Path) -> None:
    known = set(re.findall(r"`(--[a-z-]+)`", (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")))
    commands = re.findall(r"neox-serve [^`\n]*", page.read_text(encoding="utf-8"))
    named = {option for command in commands for option in re.findall(r"(?<!\S)--[a-z-]+", command)}
    assert named - known <= {"--help"}


def test_contributing_names_tests_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = re.findall(r"-m pytest (\S+)", text)
    assert paths
    assert all((ROOT / path).exists() for path in paths)
