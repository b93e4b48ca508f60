"""The committed uv.lock holds pins only, and the git filter keeps it so."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

FULL = """\
version = 1
revision = 5
requires-python = ">=3.11"
resolution-markers = [
    "python_full_version >= '3.12' and sys_platform == 'win32'",
    "python_full_version < '3.12'",
]

[options]
prerelease-mode = "if-necessary"

[manifest]
members = [
    "house",
]

[[package]]
name = "house"
version = "0.1.0"
source = { editable = "packages/house" }
dependencies = [
    { name = "numpy", version = "2.4.6", source = { registry = "https://registry.invalid/simple" } },
]

[package.metadata]
requires-dist = [{ name = "numpy", specifier = ">=1.26" }]

[[package]]
name = "numpy"
version = "2.4.6"
source = { registry = "https://registry.invalid/simple" }
resolution-markers = [
    "python_full_version < '3.12'",
]
sdist = { url = "https://files.invalid/numpy-2.4.6.tar.gz", hash = "sha256:00", size = 1 }
wheels = [
    { url = "https://files.invalid/numpy-2.4.6-py3-none-any.whl", hash = "sha256:00", size = 1 },
]

[[package]]
name = "rich"
version = "15.0.0"
source = { registry = "https://registry.invalid/simple" }
dependencies = [
    { name = "pygments" },
]

[package.optional-dependencies]
extra = [{ name = "ipywidgets" }]

[[package]]
name = "root"
version = "0.1.0"
source = { virtual = "." }
"""

PINS = """\
version = 1
requires-python = ">=3.11"
resolution-markers = [
    "python_full_version >= '3.12' and sys_platform == 'win32'",
    "python_full_version < '3.12'",
]

[[package]]
name = "numpy"
version = "2.4.6"
source = { registry = "." }
resolution-markers = [
    "python_full_version < '3.12'",
]

[[package]]
name = "rich"
version = "15.0.0"
source = { registry = "." }
"""


def strip(repository: Path, lock: str) -> str:
    command = [sys.executable, str(repository / ".ci" / "strip_lock.py")]
    return subprocess.run(command, input=lock.encode(), capture_output=True, check=True).stdout.decode()


def pinned(lock: str) -> set[tuple[str, str]]:
    return {(package["name"], package["version"]) for package in tomllib.loads(lock)["package"]}


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, check=True).stdout.decode()


def test_a_full_lock_is_reduced_to_its_pins(repository: Path) -> None:
    assert strip(repository, FULL) == PINS


def test_reducing_pins_changes_nothing(repository: Path) -> None:
    assert strip(repository, PINS) == PINS


def test_what_is_not_toml_is_refused_in_one_line(repository: Path) -> None:
    command = [sys.executable, str(repository / ".ci" / "strip_lock.py")]
    conflict = b"<<<<<<< ours\n" + FULL.encode()
    result = subprocess.run(command, input=conflict, capture_output=True, check=False)
    assert result.returncode != 0
    assert result.stdout == b""
    assert result.stderr.startswith(b"expected uv.lock to be TOML")
    assert result.stderr.count(b"\n") == 1


def test_the_committed_lock_holds_pins_only(repository: Path) -> None:
    if not (repository / ".git").exists():
        pytest.skip("not a git checkout: nothing is committed")
    committed = git(repository, "show", ":uv.lock")
    assert "://" not in committed
    assert committed == strip(repository, committed)


def test_the_lock_in_use_keeps_every_pin(repository: Path) -> None:
    if not (repository / ".git").exists():
        pytest.skip("not a git checkout: nothing is committed")
    committed = pinned(git(repository, "show", ":uv.lock"))
    assert {"numpy", "torch", "pytest"} <= {name for name, _ in committed}
    in_use = strip(repository, (repository / "uv.lock").read_text(encoding="utf-8"))
    assert pinned(in_use) == committed, "the pins changed: after `make setup`, stage uv.lock"


def test_git_commits_the_pins_of_a_completed_lock(repository: Path, tmp_path: Path) -> None:
    if shutil.which("make") is None or shutil.which("uv") is None:
        pytest.skip("make and uv are needed to enable the filter")
    (tmp_path / ".ci").mkdir()
    for name in ("Makefile", ".gitattributes", ".ci/strip_lock.py"):
        shutil.copy(repository / name, tmp_path / name)
    git(tmp_path, "init", "--quiet")
    subprocess.run(["make", "lock-filter"], cwd=tmp_path, capture_output=True, check=True)

    lock = tmp_path / "uv.lock"
    lock.write_text(PINS, encoding="utf-8")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "pins")
    lock.write_text(FULL, encoding="utf-8")
    assert git(tmp_path, "diff") == ""
    git(tmp_path, "add", "uv.lock")
    assert git(tmp_path, "status", "--porcelain") == ""
    assert git(tmp_path, "show", ":uv.lock") == PINS
    assert lock.read_text(encoding="utf-8") == FULL

    lock.write_text("<<<<<<< ours\n" + FULL, encoding="utf-8")
    with pytest.raises(subprocess.CalledProcessError):
        git(tmp_path, "add", "uv.lock")
