"""``sr-distill data prompts``: from text and captions to a folder of prompts."""

from __future__ import annotations

import json
import os
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sr_models.t2i.prompts import DEFAULT_TEXT, Prompt, PromptStore, prompt_text, read_prompt
from sr_models.t2i.text import TextEncoders

Run = Callable[..., Any]
CAPTIONS = {"street": "a street, wet", "set/house.v2": "a house", "set/other": "a house"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of the SD2 kind: a random text encoder of width 8 that knows letters."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("sd2")
    letters = [letter + end for end in ("", "</w>") for letter in string.ascii_lowercase]
    vocabulary = {token: index for index, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77).save_pretrained(folder / "tokenizer")
    size: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(1)
    config = CLIPTextConfig(vocab_size=len(vocabulary), bos_token_id=52, eos_token_id=53, pad_token_id=53, **size)
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    path = tmp_path / "captions.csv"
    path.write_text('image,caption\nstreet.png,"a street, wet"\nset/house.v2.JPG,a house\nset/other,a house\n')
    return path


@pytest.fixture
def published(tmp_path: Path) -> Path:
    folder = tmp_path / "published"
    folder.mkdir()
    torch.save(torch.randn(1, 6, 4), folder / "prompt_embeds.pt")
    torch.save(torch.randn(3), folder / "pool_embeds.pt")
    return folder


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that the text encoders were given."""
    texts: list[str] = []
    encode = TextEncoders.encode

    def recorded(self: TextEncoders, text: str) -> Prompt:
        texts.append(text)
        return encode(self, text)

    monkeypatch.setattr(TextEncoders, "encode", recorded)
    return texts


def test_prompts_are_made_once(run: Run, base: Path, captions: Path, tmp_path: Path, encoded: list[str]) -> None:
    out = tmp_path / "prompts"
    command = ("sr-distill", "data", "prompts", "--out", out, "--captions", captions, "--device", "cpu", "--base")
    outcome = run(*command, base)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith(f"{out}: wrote 5 prompts (")
    assert encoded == [DEFAULT_TEXT, "", "a street, wet", "a house"]
    store = PromptStore(out)
    assert store.names() == sorted(["default", "null", *CAPTIONS])
    encoders = TextEncoders.from_pretrained(base, dtype=torch.float16)
    for name, text in {"default": DEFAULT_TEXT, "null": "", **CAPTIONS}.items():
        assert torch.equal(store[name].embeds, encoders.encode(text).embeds)
        assert store[name].embeds.dtype == torch.float16
        assert prompt_text(out, name) == text
    encoded.clear()
    assert run(*command, tmp_path / "none").out == f"{out}: wrote 0 prompts (0.0 MB), kept 5 that were there\n"
    assert encoded == []


def test_the_same_command_continues_after_an_interruption(
    run: Run, base: Path, captions: Path, tmp_path: Path, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["sr-distill", "data", "prompts", "--captions", captions, "--device", "cpu", "--base", base, "--out"]
    recorded = TextEncoders.encode

    def interrupted(self: TextEncoders, text: str) -> Prompt:
        if text == "a street, wet":
            raise KeyboardInterrupt
        return recorded(self, text)

    with monkeypatch.context() as patch:
        patch.setattr(TextEncoders, "encode", interrupted)
        assert run(*command, tmp_path / "broken").code == 130
    assert encoded == [DEFAULT_TEXT, ""]
    outcome = run(*command, tmp_path / "broken")
    assert "wrote 3 prompts" in outcome.out
    assert "kept 2" in outcome.out
    assert encoded == [DEFAULT_TEXT, "", "a street, wet", "a house"]
    run(*command, tmp_path / "whole")
    whole, broken = PromptStore(tmp_path / "whole"), PromptStore(tmp_path / "broken")
    assert whole.names() == broken.names()
    assert torch.equal(whole.batch(whole.names()).embeds, broken.batch(whole.names()).embeds)


def test_texts_and_dtype_are_taken_from_the_options(run: Run, base: Path, tmp_path: Path) -> None:
    command = ["sr-distill", "data", "prompts", "--out", tmp_path / "out", "--base", base, "--device", "cpu"]
    outcome = run(*command, "--default", "sharp", "--null", "bad", "--dtype", "float32")
    assert outcome.code == 0, outcome.err
    encoders = TextEncoders.from_pretrained(base)
    for name, text in (("default", "sharp"), ("null", "bad")):
        assert torch.equal(read_prompt(tmp_path / "out", name).embeds, encoders.encode(text).embeds)
    outcome = run(*command, "--default", "other", "--null", "bad")
    assert outcome.code == 2
    assert "got 'other' while" in outcome.err
    assert "give another --out" in outcome.err


def test_published_prompts_need_no_text_encoder(
    run: Run, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> TextEncoders:
        raise AssertionError("loaded text encoders")

    monkeypatch.setattr(TextEncoders, "from_pretrained", load)
    out = tmp_path / "out"
    outcome = run(
        *("sr-distill", "data", "prompts", "--out", out, "--published", published, "--null-published", published),
        *("--dtype", "float32"),
    )
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith(f"{out}: wrote 2 prompts")
    stored = PromptStore(out)["default"]
    assert torch.equal(stored.embeds, torch.load(published / "prompt_embeds.pt"))
    assert stored.pooled is not None
    assert torch.equal(stored.pooled[0], torch.load(published / "pool_embeds.pt"))
    outcome = run(
        "sr-distill", "data", "prompts", "--out", out, "--published", published, "--null-published", published
    )
    assert outcome.out == f"{out}: wrote 0 prompts (0.0 MB), kept 2 that were there\n"
    assert torch.equal(PromptStore(out)["default"].embeds, stored.embeds)
    outcome = run("sr-distill", "data", "prompts", "--out", tmp_path / "half", "--published", published)
    assert outcome.code == 2
    assert "expected --base" in outcome.err


def test_published_and_encoded_prompts_of_other_shapes_are_not_mixed(
    run: Run, base: Path, published: Path, tmp_path: Path
) -> None:
    command = ["sr-distill", "data", "prompts", "--out", tmp_path / "out", "--base", base, "--device", "cpu"]
    outcome = run(*command, "--published", published)
    assert outcome.code == 2
    assert "same shape as 'default'" in outcome.err


def test_captions_may_be_csv_jsonl_or_text_files(captions: Path, tmp_path: Path) -> None:
    from sr_cli.data import read_captions

    lines = tmp_path / "captions.jsonl"
    lines.write_text(
        "".join(
            json.dumps({"caption": f" {text}\n", "image": f"{name}.png"}) + "\n\n" for name, text in CAPTIONS.items()
        )
    )
    folder = tmp_path / "captions"
    for name, text in {**CAPTIONS, ".hidden": "not this", "set/.hidden": "nor this"}.items():
        (folder / f"{name}.txt").parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.txt").write_text(f"{text}\n")
    for path in (captions, lines, folder):
        assert read_captions(path) == CAPTIONS
    special = {"a": 'two\u2028lines, "quoted"', "b": "größe"}
    lines.write_text(
        "".join(json.dumps({"image": k, "caption": v}, ensure_ascii=False) + "\n" for k, v in special.items())
    )
    assert read_captions(lines) == special
    captions.write_text('\ufeffcaption,image\r\n"two\u2028lines, ""quoted""",a.webp\r\ngröße,b\r\n', newline="")
    assert read_captions(captions) == special


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "name,text\na,b\n", "begins with the line image,caption"),
        ("a.csv", "image,caption\na.png\n", "line 2"),
        ("a.csv", "image,caption\na.png,one, two\n", "quotes captions that hold commas"),
        ("a.csv", 'image,caption\na.png,"one\n', "expected CSV"),
        ("a.csv", "image,caption\na.png,one\na.jpg,two\n", "a second one for 'a'"),
        ("a.csv", "image,caption\n/data/a.png,one\n", "relative to its folder"),
        ("a.csv", "image,caption\ndefault.png,one\n", "neither default nor null"),
        ("a.csv", "image,caption\n", "got none"),
        ("a.jsonl", '{"image": "a"\n', "expected JSON"),
        ("a.jsonl", '{"image": "a", "caption": 3}\n', "expected image and caption"),
        ("a.jsonl", "[1]\n", "expected image and caption"),
        ("a.jsonl", b'{"image": "a", "caption": "\xff"}\n', "UTF-8"),
        ("a.txt", "caption", "rename it"),
        ("none/a.csv", "", "got nothing there"),
    ],
)
def test_wrong_captions_are_one_line(run: Run, tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    if "/" not in name:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    outcome = run("sr-distill", "data", "prompts", "--out", tmp_path / "out", "--captions", tmp_path / name)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: expected ")
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_wrong_bases_and_options_are_one_line(run: Run, base: Path, tmp_path: Path) -> None:
    command = ["sr-distill", "data", "prompts", "--out", tmp_path / "out", "--device", "cpu"]
    for options, message in (
        (["--base", tmp_path], "model_index.json or a hub id"),
        (["--base", base, "--dtype", "int8"], "expected --dtype"),
        (["--published", tmp_path, "--base", base], "prompt_embeds.pt"),
    ):
        outcome = run(*command, *options)
        assert (outcome.code, outcome.out) == (2, "")
        assert outcome.err.startswith("error: expected ")
        assert message in outcome.err
        assert outcome.err.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_offline_never_asks_the_network(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import DiffusionPipeline

    asked: list[tuple[object, object]] = []

    def load_config(base: str, *, local_files_only: bool) -> None:
        asked.append((os.environ["HF_HUB_OFFLINE"], local_files_only))
        raise OSError("not cached")

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(DiffusionPipeline, "load_config", load_config)
    command = ("sr-distill", "data", "prompts", "--out", tmp_path / "out", "--device", "cpu", "--base", "owner/name")
    outcome = run(*command)
    assert outcome.code == 2
    assert "check the name and the network" in outcome.err
    outcome = run(*command, "--offline")
    assert outcome.code == 2
    assert "run once online" in outcome.err
    # The variable is for what reads it on import; the argument for the case that it has been read before.
    assert asked == [("0", False), ("1", True)]


def test_help_imports_nothing_heavy() -> None:
    source = """
import sys
from sr_cli.main import app
app(["data", "prompts", "--help"], standalone_mode=False)
sys.exit(" ".join({"torch", "numpy", "diffusers", "transformers", "huggingface_hub"} & set(sys.modules)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--captions" in done.stdout


def test_a_stored_prompt_is_never_kept_in_place_of_the_one_given(run: Any, tmp_path: Path) -> None:
    """Also not where nobody knows what its text was."""
    folders = [tmp_path / name for name in ("first", "second", "null")]
    for number, folder in enumerate(folders):
        folder.mkdir()
        torch.save(torch.full((1, 5, 8), float(number)), folder / "prompt_embeds.pt")
        torch.save(torch.full((1, 6), float(number)), folder / "pool_embeds.pt")
    first, second, null = folders
    command = ["sr-distill", "data", "prompts", "--null-published", null, "--out", tmp_path / "out"]
    assert run(*command, "--published", first).code == 0
    again = run(*command, "--published", first)
    assert (again.code, "kept 2" in again.out) == (0, True)
    refused = run(*command, "--published", second)
    assert refused.code == 2
    assert "expected the prompt 'default'" in refused.err
    asked = run("sr-distill", "data", "prompts", "--default", "a photo", "--out", tmp_path / "out")
    assert asked.code == 2
    assert "holds a prompt of unknown text" in asked.err
