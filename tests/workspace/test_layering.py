"""Imports go one way, and every package declares what it imports, so that it installs alone."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

# import name -> the packages of the house that it may import
MAY_IMPORT: dict[str, set[str]] = {
    "resshift_core": set(),
    "sr_data": {"resshift_core"},
    "sr_models": {"resshift_core"},
    "distill": {"resshift_core", "sr_data", "sr_models"},
    "sr_cli": {"resshift_core", "sr_data", "sr_models", "distill"},
    "sr_bench": {"resshift_core", "sr_data", "sr_models", "distill"},
}

# import name -> distribution name, where they are not the same word
DISTRIBUTION = {
    "PIL": "pillow",
    "cv2": "opencv-python",
    "skimage": "scikit-image",
    "sr_cli": "sr-distill",
    "yaml": "pyyaml",
}

SOURCES = {
    folder.name: folder
    for pattern in ("packages/*/src/*", "apps/*/src/*")
    for folder in sorted(REPOSITORY.glob(pattern))
    if (folder / "__init__.py").is_file()
}


@dataclass(frozen=True)
class Import:
    """One import statement: the top-level name, where it stands, and whether importing the module runs it."""

    name: str
    where: str
    at_import_time: bool


def imports_of_source(source: str, path: str) -> Iterator[Import]:
    def walk(node: ast.AST, at_import_time: bool) -> Iterator[Import]:
        names: list[str] = []
        match node:
            case ast.Import():
                names = [alias.name for alias in node.names]
            case ast.ImportFrom(level=0, module=str(module)):
                names = [module]
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(module)), *_],
            ):
                names = [module]
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                at_import_time = False
            case _:
                pass
        for name in names:
            yield Import(name.split(".")[0], f"{path}:{getattr(node, 'lineno', 0)}", at_import_time)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, at_import_time)

    return walk(ast.parse(source), True)


def imports_of_package(package: str) -> list[Import]:
    return [
        found
        for path in sorted(SOURCES[package].rglob("*.py"))
        for found in imports_of_source(path.read_text(encoding="utf-8"), str(path.relative_to(REPOSITORY)))
    ]


def project_of(package: str) -> dict[str, Any]:
    text = (SOURCES[package].parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    project: dict[str, Any] = tomllib.loads(text)["project"]
    return project


def distribution_names(requirements: list[str]) -> set[str]:
    names = (re.match(r"[A-Za-z0-9._-]+", requirement) for requirement in requirements)
    return {re.sub(r"[-_.]+", "-", name.group()).lower() for name in names if name}


def extra_requirements(project: dict[str, Any]) -> list[str]:
    return [line for group in project.get("optional-dependencies", {}).values() for line in group]


def upward_imports(package: str, found: list[Import]) -> list[str]:
    forbidden = set(MAY_IMPORT) - MAY_IMPORT[package] - {package}
    return [f"{one.where} imports {one.name}" for one in found if one.name in forbidden]


def undeclared_imports(package: str, found: list[Import], project: dict[str, Any]) -> list[str]:
    always = distribution_names(project["dependencies"])
    extras = distribution_names(extra_requirements(project))
    missing = []
    for one in found:
        if one.name == package or one.name in sys.stdlib_module_names:
            continue
        distribution = DISTRIBUTION.get(one.name, one.name.replace("_", "-").lower())
        # An extra may be absent, so only code that runs when it is asked for may import it.
        if distribution not in (always if one.at_import_time else always | extras):
            missing.append(f"{one.where} imports {one.name}; declare {distribution} in its pyproject.toml")
    return missing


def test_every_package_has_its_place_in_the_order() -> None:
    assert set(SOURCES) == set(MAY_IMPORT)


def test_the_scan_sees_every_kind_of_import() -> None:
    source = """
import a.b, c
from d.e import f
from . import own
from .own import thing
def late():
    import g
    importlib.import_module("h.i")
class Eager:
    import j
if TYPE_CHECKING:
    from k import l
"""
    found = list(imports_of_source(source, "example.py"))
    assert [one.name for one in found if one.at_import_time] == ["a", "c", "d", "j", "k"]
    assert [one.name for one in found if not one.at_import_time] == ["g", "h"]


def test_the_rules_catch_what_they_forbid() -> None:
    source = "import sr_models\ndef late():\n    import lpips\n    import distill\nimport lpips, PIL\n"
    found = list(imports_of_source(source, "example.py"))
    assert upward_imports("sr_data", found) == [
        "example.py:1 imports sr_models",
        "example.py:4 imports distill",
    ]
    project = {
        "dependencies": ["sr_models", "distill"],
        "optional-dependencies": {"perceptual": ["lpips>=0.1"]},
    }
    assert undeclared_imports("sr_data", found, project) == [
        "example.py:5 imports lpips; declare lpips in its pyproject.toml",
        "example.py:5 imports PIL; declare pillow in its pyproject.toml",
    ]


@pytest.mark.parametrize("package", sorted(SOURCES))
def test_imports_go_one_way(package: str) -> None:
    assert upward_imports(package, imports_of_package(package)) == []


@pytest.mark.parametrize("package", sorted(SOURCES))
def test_imports_are_declared(package: str) -> None:
    assert undeclared_imports(package, imports_of_package(package), project_of(package)) == []


def test_the_mathematics_needs_numpy_only() -> None:
    project = project_of("resshift_core")
    assert distribution_names(project["dependencies"]) == {"numpy", "array-api-compat"}
    assert "optional-dependencies" not in project


@pytest.mark.parametrize("package", sorted(set(SOURCES) - {"sr_bench"}))
def test_only_the_bench_needs_pyiqa(package: str) -> None:
    """Its licence is non-commercial; the libraries and the command line are for everyone."""
    assert [one.where for one in imports_of_package(package) if one.name == "pyiqa"] == []
    project = project_of(package)
    declared = distribution_names([*project["dependencies"], *extra_requirements(project)])
    assert not {"pyiqa", "sr-bench"} & declared
