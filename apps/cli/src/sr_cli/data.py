"""``sr-distill data``: prepare what training reads besides the images."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sr_cli.offline import Offline, go_offline

if TYPE_CHECKING:
    from sr_models.t2i.prompts import Prompt

data_app = typer.Typer(no_args_is_help=True, help="Prepare training data: prompts of text-to-image teachers.")


@data_app.callback()
def data() -> None:
    """Prepare training data: prompts of text-to-image teachers."""


@data_app.command()
def prompts(
    out: Annotated[Path, typer.Option(help="folder of prompts to make or to complete", show_default=False)],
    base: Annotated[
        str | None, typer.Option(help="diffusers folder or hub id (SD3 or SD2) whose text encoders are used")
    ] = None,
    default: Annotated[
        str | None, typer.Option(metavar="TEXT", help="prompt of the student; without it the one that TSD-SR publishes")
    ] = None,
    null: Annotated[
        str | None, typer.Option(metavar="TEXT", help="prompt of classifier-free guidance, the empty text unless given")
    ] = None,
    captions: Annotated[
        Path | None,
        typer.Option(help="CSV or JSONL file with image and caption, or a folder of NAME.txt: a prompt per image"),
    ] = None,
    published: Annotated[
        Path | None, typer.Option(help="folder with prompt_embeds.pt and pool_embeds.pt to take as the default prompt")
    ] = None,
    null_published: Annotated[Path | None, typer.Option(help="such a folder to take as the null prompt")] = None,
    offline: Offline = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="of the encoders and of the stored prompts: float16, bfloat16 or float32")
    ] = "float16",
) -> None:
    """Encode the default prompt, the null prompt and a prompt per image, once.

    Training and use then need no text encoder. What is in the folder is kept, so the same command again continues.
    A text beyond 77 tokens (CLIP) or 256 (T5) is cut off.
    """
    if offline:
        go_offline()
    from sr_models.t2i.prompts import DEFAULT, DEFAULT_TEXT, NULL, read_published_prompt

    ready = {
        name: read_published_prompt(folder)
        for name, folder in ((DEFAULT, published), (NULL, null_published))
        if folder is not None
    }
    texts = {DEFAULT: DEFAULT_TEXT if default is None else default, NULL: null or ""}
    asked = {name for name, text in ((DEFAULT, default), (NULL, null)) if text is not None}
    if captions is not None:
        texts |= read_captions(captions)
    for name in ready:
        del texts[name]
    _write_prompts(out, ready, texts, asked, base, offline=offline, device=device, dtype=dtype)


def _write_prompts(
    out: Path,
    ready: dict[str, Prompt],
    texts: dict[str, str],
    asked: set[str],
    base: str | None,
    *,
    offline: bool,
    device: str,
    dtype: str,
) -> None:
    """Write the prompts that the folder does not hold yet, and say what was done."""
    from rich.console import Console
    from rich.progress import track

    from sr_models.t2i.prompts import DTYPES, PromptStore, prompt_path, read_prompt, save_prompt

    if dtype not in DTYPES:
        raise ValueError(f"expected --dtype {', '.join(DTYPES)}, got {dtype!r}; use one of them")
    missing = {text: names for text, names in _by_text(out, texts, asked).items() if names}
    if missing and base is None:
        raise ValueError(
            "expected --base, a diffusers folder or hub id, to encode text with, got none; give it, "
            "or both --published and --null-published and no captions"
        )
    written = []
    for name, prompt in ready.items():
        if not prompt_path(out, name).is_file():
            save_prompt(out, name, prompt, DTYPES[dtype])
            written.append(name)
        elif not _same(read_prompt(out, name), prompt):
            raise ValueError(
                f"expected the prompt {name!r} of {out} to be the one given, got another; remove "
                f"{prompt_path(out, name)} or give another --out"
            )
    if missing:
        encoders = _text_encoders(str(base), offline=offline, device=device, dtype=dtype)
        console = Console(stderr=True)
        for text, names in track(missing.items(), "encoding", console=console, disable=not console.is_terminal):
            encoded = encoders.encode(text)
            for name in names:
                save_prompt(out, name, encoded, DTYPES[dtype], text=text)
                written.append(name)
    PromptStore(out)  # what training will open
    size = sum(prompt_path(out, name).stat().st_size for name in written) / 1e6
    kept = len(ready) + len(texts) - len(written)
    print(f"{out}: wrote {len(written)} prompts ({size:.1f} MB)" + (f", kept {kept} that were there" if kept else ""))


def _same(stored: Prompt, given: Prompt) -> bool:
    """Whether a stored prompt is the given one, in the precision in which it is stored."""
    given = given.to(dtype=stored.embeds.dtype)
    if stored.shape != given.shape or not stored.embeds.equal(given.embeds):
        return False
    return stored.pooled is None or given.pooled is None or stored.pooled.equal(given.pooled)


def _text_encoders(base: str, *, offline: bool, device: str, dtype: str) -> Any:
    from sr_models.compute import choose_device
    from sr_models.t2i.prompts import DTYPES
    from sr_models.t2i.text import TextEncoders

    return TextEncoders.from_pretrained(
        base, local_files_only=offline, dtype=DTYPES[dtype], device=choose_device(device)
    )


def _by_text(out: Path, texts: dict[str, str], asked: set[str]) -> dict[str, list[str]]:
    """Names whose prompt is still to be made, by text: what is said twice is encoded once.

    A stored prompt without its text, as published ones are, is kept unless its text was ``asked`` for.
    """
    from sr_models.t2i.prompts import prompt_path, prompt_text

    groups: dict[str, list[str]] = {}
    for name, text in texts.items():
        if not prompt_path(out, name).is_file():
            groups.setdefault(text, []).append(name)
        elif (known := prompt_text(out, name)) != text and (known is not None or name in asked):
            held = "unknown text" if known is None else repr(known)
            raise ValueError(
                f"expected the text of {name!r} to be as before, got {text!r} while {out} holds a prompt of {held}; "
                f"remove {prompt_path(out, name)} or give another --out"
            )
    return groups


def read_captions(path: Path) -> dict[str, str]:
    """Read captions by the name of the image, relative and without its suffix.

    Args:
        path: CSV file with the header image,caption, JSONL file with these keys, or a folder of NAME.txt.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: another kind of file, a line without image or caption, or two captions for one name.
    """
    from sr_data.images import IMAGE_SUFFIXES
    from sr_models.t2i.prompts import DEFAULT, NULL, is_prompt_name

    if not path.exists():
        raise FileNotFoundError(f"expected captions at {path}, got nothing there; give a CSV or JSONL file or a folder")
    found: dict[str, str] = {}
    for place, image, caption in _text_files(path) if path.is_dir() else _lines(path):
        pure = PurePosixPath(image)
        name = str(pure.with_suffix("")) if pure.suffix.lower() in IMAGE_SUFFIXES else image
        if name in (DEFAULT, NULL) or not is_prompt_name(name):
            raise ValueError(
                f"expected the image's name relative to its folder, and neither {DEFAULT} nor {NULL}, "
                f"got {image!r} in {place}; rename it"
            )
        if found.setdefault(name, caption) != caption:
            raise ValueError(f"expected one caption per image, got a second one for {name!r} in {place}; remove one")
    if not found:
        raise ValueError(f"expected captions in {path}, got none; give lines of image and caption, or NAME.txt files")
    return found


def _text_files(folder: Path) -> Iterator[tuple[Path, str, str]]:
    for path in sorted(folder.rglob("*.txt")):
        name = path.relative_to(folder).as_posix().removesuffix(".txt")
        if not any(part.startswith(".") for part in name.split("/")):
            yield path, name, _read_text(path).strip()


def _lines(path: Path) -> Iterator[tuple[str, str, str]]:
    # Not str.splitlines: it also breaks at characters that a caption may hold, such as U+2028.
    lines = io.StringIO(_read_text(path))
    if path.suffix.lower() == ".csv":
        reader = csv.DictReader(lines, strict=True)
        try:
            for row in reader:
                yield _entry(row, f"{path} line {reader.line_num}")
        except csv.Error as error:
            raise ValueError(f"expected CSV in {path} line {reader.line_num}, got {error}; correct the line") from error
    elif path.suffix.lower() == ".jsonl":
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"expected JSON in {path} line {number}, got {error}; correct the line") from error
            yield _entry(row, f"{path} line {number}")
    else:
        raise ValueError(f"expected captions in a .csv or .jsonl file or a folder of .txt files, got {path}; rename it")


def _entry(row: Any, place: str) -> tuple[str, str, str]:
    values = [row.get(key) for key in ("image", "caption")] if isinstance(row, dict) else [None]
    if not all(isinstance(value, str) for value in values) or None in row:
        raise ValueError(
            f"expected image and caption in {place}, got {row}; a CSV file begins with the line image,caption and "
            "quotes captions that hold commas"
        )
    image, caption = values
    return place, str(image).strip(), str(caption).strip()


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8 text in {path}, got {error}; save the file as UTF-8") from error
