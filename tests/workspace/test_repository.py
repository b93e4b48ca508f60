"""The house keeps its shape: what lies at the top, what each package says of itself, what no file names."""

from __future__ import annotations

import os
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECTS = sorted([*REPOSITORY.glob("packages/*/pyproject.toml"), *REPOSITORY.glob("apps/*/pyproject.toml")])

TOP_LEVEL = {
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "apps",
    "benchmarks",
    "docs",
    "packages",
    "pyproject.toml",
    "tests",
    "uv.lock",
}

# In pieces, so that this file does not name them either.
REGISTRY_HOSTS = [
    ".".join(pieces)
    for pieces in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("registry", "npmjs"),
        ("download", "pytorch"),
        ("anaconda", "org"),
        ("crates", "io"),
        ("deb", "debian"),
        ("proxy", "golang"),
    )
]


def files_of_the_project() -> list[str]:
    """Tracked files, and new ones that git would add."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout: project files cannot be told from others")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True).stdout.decode()
    return [name for name in listing.split("\0") if name and (REPOSITORY / name).is_file()]


def hosts_named_in(content: bytes) -> list[str]:
    lowered = content.lower()
    return [host for host in REGISTRY_HOSTS if host.encode() in lowered]


def project_of(path: Path) -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    return project


def test_no_file_names_a_package_registry() -> None:
    # The lock in use is completed by uv; test_lock.py looks at the committed one.
    naming = {
        name: hosts
        for name in files_of_the_project()
        if name != "uv.lock" and (hosts := hosts_named_in((REPOSITORY / name).read_bytes()))
    }
    assert naming == {}


@pytest.mark.parametrize("host", REGISTRY_HOSTS)
def test_a_registry_host_is_recognised(host: str) -> None:
    assert hosts_named_in(f"see HTTPS://{host.upper()}/simple".encode()) == [host]


def test_the_top_level_holds_what_the_design_names() -> None:
    top = {Path(name).parts[0] for name in files_of_the_project()}
    assert {name for name in top if not name.startswith(".")} == TOP_LEVEL


def test_the_workspace_has_packages() -> None:
    assert len(PROJECTS) >= 6


def test_python_3_11_is_enough() -> None:
    for path in [REPOSITORY / "pyproject.toml", *PROJECTS]:
        assert project_of(path)["requires-python"] == ">=3.11", path


@pytest.mark.parametrize("path", PROJECTS, ids=lambda path: path.parent.name)
def test_every_package_says_what_it_is(path: Path) -> None:
    project = project_of(path)
    assert project["license"] == "Apache-2.0"
    assert project["description"].endswith(".")
    assert project["readme"] == "README.md"
    readme = (path.parent / "README.md").read_text(encoding="utf-8")
    assert readme.startswith(f"# {project['name']}\n")
    assert list(path.parent.glob("src/*/py.typed")), "without py.typed its types are invisible to its users"


def test_the_licence_is_apache_2() -> None:
    text = (REPOSITORY / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_root_installs_every_package() -> None:
    root = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    names = {name.partition("[")[0] for name in root["project"]["dependencies"]}  # with or without extras
    assert names == {project_of(path)["name"] for path in PROJECTS}


def test_ci_is_one_script_that_runs_as_it_is() -> None:
    script = REPOSITORY / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in text
    for command in ("ruff check .", "ruff format --check .", "mypy", "pytest"):
        assert f"stage uv run {command}\n" in text
    assert "\tbash .ci/run\n" in (REPOSITORY / "Makefile").read_text(encoding="utf-8")
