"""Reduce a uv.lock on standard input to its pins on standard output.

A full lock names the registry, and the address and hash of every file. The committed one keeps, per registry
package, `name`, `version` and `resolution-markers`; uv fills in the rest and keeps the pinned versions.
Reducing a reduced lock gives it back byte for byte. `make setup` has git run this on `git add uv.lock`;
docs/development.md tells the story.
"""

from __future__ import annotations

import json
import sys
import tomllib
from typing import Any

# Without `revision`, which differs between releases of uv that otherwise write the same pins.
HEADER = ("version", "requires-python", "resolution-markers")


def line(key: str, value: str | int | list[str]) -> str:
    """Write one `key = value` as uv writes it: a list takes one line per element."""
    if isinstance(value, list):
        return "\n".join([f"{key} = [", *(f"    {json.dumps(element)}," for element in value), "]"])
    return f"{key} = {json.dumps(value)}"


def strip_lock(text: str) -> str:
    """Return the pins of a lock file.

    Args:
        text: Content of a uv.lock, full or already reduced.

    Returns:
        The header and one entry per registry package; workspace members, addresses and hashes are left out.

    Raises:
        tomllib.TOMLDecodeError: The text is not TOML (a lock with conflict markers, for example).
    """
    lock: dict[str, Any] = tomllib.loads(text)
    blocks = ["\n".join(line(key, lock[key]) for key in HEADER if key in lock)]
    for package in lock.get("package", []):
        if "registry" not in package["source"]:
            continue
        entry = [
            "[[package]]",
            line("name", package["name"]),
            line("version", package["version"]),
            'source = { registry = "." }',
        ]
        if "resolution-markers" in package:
            entry.append(line("resolution-markers", package["resolution-markers"]))
        blocks.append("\n".join(entry))
    return "\n\n".join(blocks) + "\n"


if __name__ == "__main__":
    try:
        pins = strip_lock(sys.stdin.buffer.read().decode())
    except tomllib.TOMLDecodeError as error:
        sys.exit(f"expected uv.lock to be TOML, got: {error}; settle its conflicts, then run `uv lock`")
    sys.stdout.buffer.write(pins.encode())
