"""What was asked for on the command line, as a whole."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sr_cli.upscale.plan import STREAM, file_key, names_a_file
from sr_cli.upscale.settings import FORMATS, SAME, Settings


@dataclass(frozen=True)
class Request:
    """The pictures, where they go, and how they are restored."""

    paths: tuple[str, ...]
    output: str | None
    settings: Settings
    overwrite: bool = False
    report: Path | None = None
    quiet: bool = False
    max_pixels: int | None = None

    @property
    def alone(self) -> bool:
        """Whether it is about one picture, whose failure is the failure of the command."""
        return len(self.paths) == 1 and (self.paths[0] == STREAM or not Path(self.paths[0]).is_dir())

    @property
    def to_stdout(self) -> bool:
        """Whether the picture goes to stdout."""
        return self.output == STREAM or (self.output is None and self.paths == (STREAM,))

    @property
    def named(self) -> str | None:
        """The file that ``-o`` names; None where it names a folder, stdout, or nothing."""
        return self.output if self.alone and self.output not in (None, STREAM) and names_a_file(self.output) else None

    def check(self) -> None:
        """Refuse what cannot be written, before anything is read.

        Raises:
            ValueError: options that do not go together, or a report that has no place.
        """
        asked, named = self.settings.format, self.named
        if self.max_pixels is not None and self.max_pixels < 1:
            raise ValueError(f"expected --max-pixels of at least 1, got {self.max_pixels}; such as 200000000")
        if self.report is not None and self.report.suffix.lower() != ".json":
            raise ValueError(f"expected --report FILE.json, got {self.report}; let its name end in .json")
        if self.report is not None and self.report.is_dir():
            raise ValueError(f"expected --report FILE.json, got the folder {self.report}; name a file in it")
        if self.report is not None and not self.report.absolute().parent.is_dir():
            raise ValueError(f"expected --report in a folder that exists, got {self.report}; make the folder first")
        if asked == SAME and STREAM in self.paths:
            raise ValueError("expected --format png, jpg, ... for a picture from stdin, got same; name the format")
        suffix = FORMATS.get(asked or "png")  # None for "same", which meets both kinds
        if named is not None:
            suffix = Path(named).suffix.lower()
            suffix = {".jpeg": ".jpg", ".tif": ".tiff"}.get(suffix, suffix)
            if asked is not None and FORMATS.get(asked) != suffix:
                raise ValueError(f"expected --format to agree with the name, got {asked} and {named}; leave it out")
        if self.settings.quality is not None and suffix is not None and not is_lossy(suffix):
            raise ValueError(f"expected no --quality for lossless {suffix[1:]}; leave it out, or give --format jpg")
        if self.to_stdout and sys.stdout.isatty():
            raise ValueError("expected stdout to be a file or a pipe, got a terminal; give -o FILE, or redirect with >")

    def check_report(self, files: Iterable[Path]) -> None:
        """Refuse a report that would replace one of these files: inputs, outputs, records.

        Raises:
            ValueError: it would.
        """
        if self.report is None:
            return
        resolved, seen = os.path.realpath(self.report), file_key(self.report)
        for file in files:
            if os.path.realpath(file) == resolved or (seen is not None and file_key(file) == seen):
                raise ValueError(
                    f"expected --report a file of its own, got {self.report}, which is {file}; give another name"
                )

    def content(self) -> dict[str, Any]:
        """Return it for the report."""
        return {
            "paths": list(self.paths),
            "output": self.output,
            "overwrite": self.overwrite,
            "max_pixels": self.max_pixels,
            **asdict(self.settings),
        }


def is_lossy(suffix: str) -> bool:
    """Whether a quality means something for this format."""
    return suffix.lower() in (".jpg", ".jpeg", ".webp", ".avif")
