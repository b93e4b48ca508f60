"""The package stays light: its dependencies, its imports, its documented example."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import resshift_core


def test_dependencies_are_numpy_and_array_api_compat(repository: Path) -> None:
    project = tomllib.loads((repository / "packages/resshift-core/pyproject.toml").read_text(encoding="utf-8"))
    names = {re.split(r"[^\w-]", entry, maxsplit=1)[0] for entry in project["project"]["dependencies"]}
    assert names == {"numpy", "array-api-compat"}
    assert not project["project"].get("optional-dependencies")


def test_import_and_use_with_numpy_loads_no_other_array_library() -> None:
    program = (
        "import sys, numpy, resshift_core\n"
        "x = numpy.zeros((2, 3))\n"
        "resshift_core.ResShiftSchedule.exponential().marginal(x, x, numpy.array([1, 2])).sample(x)\n"
        "print([name for name in ('torch', 'jax', 'cupy', 'dask', 'scipy') if name in sys.modules])\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_all_names_are_exported() -> None:
    assert sorted(resshift_core.__all__) == resshift_core.__all__
    for name in resshift_core.__all__:
        assert getattr(resshift_core, name).__doc__


def test_readme_example_runs(repository: Path) -> None:
    readme = (repository / "packages/resshift-core/README.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    assert len(examples) == 1
    exec(compile(examples[0], "README.md", "exec"), {"__name__": "readme"})
