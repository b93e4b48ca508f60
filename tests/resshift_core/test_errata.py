"""The tests that docs/errata.md names exist."""

from __future__ import annotations

import re
from pathlib import Path


def test_the_page_names_tests_that_exist(repository: Path) -> None:
    page = (repository / "docs/errata.md").read_text(encoding="utf-8")
    names = re.findall(r"`([\w/.]*)::(\w+)`", page)
    assert len(names) > 20
    file = ""
    for given, name in names:
        file = given or file  # `::name` is in the file named before
        path = repository / (file if "/" in file else f"tests/resshift_core/{file}")
        assert f"def {name}(" in path.read_text(encoding="utf-8"), f"{file} has no {name}"
