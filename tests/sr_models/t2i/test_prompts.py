"""Prompts: how they are batched, stored and read, and what text encoders of tiny random bases make."""

from __future__ import annotations

import json
import shutil
import string
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sr_models.t2i.prompts import (
    DEFAULT,
    NULL,
    Prompt,
    PromptStore,
    prompt_text,
    read_prompt,
    read_published_prompt,
    save_prompt,
)
from sr_models.t2i.text import TextEncoders

LENGTH, WIDTH, POOLED = 5, 4, 3


def make_prompt(seed: int, *, pooled: bool = True, width: int = WIDTH, batch: int = 1) -> Prompt:
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(batch, LENGTH, width, generator=generator)
    return Prompt(embeds, torch.randn(batch, POOLED, generator=generator) if pooled else None)


def assert_same(left: Prompt, right: Prompt) -> None:
    assert torch.equal(left.embeds, right.embeds)
    assert (left.pooled is None) == (right.pooled is None)
    if left.pooled is not None and right.pooled is not None:
        assert torch.equal(left.pooled, right.pooled)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store of four prompts; the seed of each is its place."""
    for seed, name in enumerate((DEFAULT, NULL, "street", "set/a.b")):
        save_prompt(tmp_path, name, make_prompt(seed), text=f"text of {name}")
    return tmp_path


# ---- Prompt


@pytest.mark.parametrize("pooled", [True, False])
def test_repeat_and_cat_keep_the_images_apart(pooled: bool) -> None:
    one, two = make_prompt(1, pooled=pooled), make_prompt(2, pooled=pooled)
    both = Prompt.cat([one, two.repeat(2)])
    assert len(both) == 3
    for place, prompt in enumerate((one, two, two)):
        assert torch.equal(both.embeds[place], prompt.embeds[0])
        if pooled:
            assert both.pooled is not None
            assert prompt.pooled is not None
            assert torch.equal(both.pooled[place], prompt.pooled[0])
    assert (both.pooled is None) == (not pooled)


def test_to_converts_both_tensors() -> None:
    prompt = make_prompt(1).to("meta", torch.float16)
    assert prompt.pooled is not None
    for tensor in (prompt.embeds, prompt.pooled):
        assert (tensor.device.type, tensor.dtype) == ("meta", torch.float16)
    assert make_prompt(1, pooled=False).to(dtype=torch.float64).embeds.dtype == torch.float64


def test_prompts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="one prompt to repeat, got 2"):
        make_prompt(1, batch=2).repeat(2)
    with pytest.raises(ValueError, match="of one shape"):
        Prompt.cat([make_prompt(1), make_prompt(2, pooled=False)])
    with pytest.raises(ValueError, match="of one shape"):
        Prompt.cat([make_prompt(1), make_prompt(2, width=WIDTH + 1)])
    with pytest.raises(ValueError, match="at least one"):
        Prompt.cat([])
    with pytest.raises(ValueError, match="batch dimension"):
        Prompt(torch.zeros(LENGTH, WIDTH))
    with pytest.raises(ValueError, match="batch dimension"):
        Prompt(torch.zeros(2, LENGTH, WIDTH), torch.zeros(1, POOLED))


# ---- PromptStore


def test_store_gives_back_what_was_saved(folder: Path) -> None:
    store = PromptStore(folder)
    assert store.names() == ["default", "null", "set/a.b", "street"]
    assert_same(store[DEFAULT], make_prompt(0))
    assert_same(store["set/a.b"], make_prompt(3))
    assert_same(store.batch(["street", NULL, "street"]), Prompt.cat([make_prompt(2), make_prompt(1), make_prompt(2)]))
    assert "street" in store
    assert not any(name in store for name in ("other", "set", "../street", ".street", 3))
    assert prompt_text(folder, "street") == "text of street"


def test_file_has_the_named_tensors_without_batch(folder: Path) -> None:
    save_prompt(folder, "half", make_prompt(7), torch.float16)
    tensors = load_file(folder / "half.safetensors")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert shapes == {"prompt_embeds": (LENGTH, WIDTH), "pooled_prompt_embeds": (POOLED,)}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert_same(read_prompt(folder, "half"), make_prompt(7).to(dtype=torch.float16))
    assert prompt_text(folder, "half") is None


def test_cache_keeps_the_prompts_used_last(folder: Path) -> None:
    store = PromptStore(folder, cached=2)
    street = store["street"]
    store[DEFAULT]
    assert store["street"] is street
    store[NULL]
    assert store["street"] is street  # default left, used longest ago
    for name in (DEFAULT, NULL):
        store[name]
    assert store["street"] is not street


@pytest.mark.parametrize("name", [DEFAULT, NULL])
def test_a_store_needs_default_and_null(folder: Path, name: str) -> None:
    (folder / f"{name}.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=f"without {name}; make it with: sr-distill data prompts"):
        PromptStore(folder)


def test_a_missing_prompt_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"named 'square' in .*; make it with: sr-distill data prompts"):
        PromptStore(folder).batch(["street", "square"])


def test_prompts_of_other_shapes_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="same shape as 'default'"):
        save_prompt(folder, "wide", make_prompt(1, width=WIDTH + 1))
    assert "wide" not in PromptStore(folder)
    save_file({"prompt_embeds": torch.zeros(LENGTH, WIDTH)}, folder / "street.safetensors")
    with pytest.raises(ValueError, match=r"of one shape.*'street'.*remove"):
        PromptStore(folder)["street"]
    save_file({"prompt_embeds": torch.zeros(LENGTH, WIDTH)}, folder / "null.safetensors")
    with pytest.raises(ValueError, match=r"of one shape.*'null'"):
        PromptStore(folder)


def test_files_that_are_no_prompts_are_refused(folder: Path) -> None:
    for tensors in ({"embeds": torch.zeros(2, 2)}, {"prompt_embeds": torch.zeros(1, 2, 2)}):
        save_file(tensors, folder / "street.safetensors")
        with pytest.raises(ValueError, match=r"expected prompt_embeds \(L, D\).*remove the file"):
            read_prompt(folder, "street")
    (folder / "street.safetensors").write_bytes(b"abc")
    for read in (read_prompt, prompt_text):
        with pytest.raises(ValueError, match=r"expected safetensors in .*street.*remove the file"):
            read(folder, "street")


def test_only_one_finite_prompt_inside_the_folder_is_saved(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    for name in ("../out", "/out", "a//b", ".hidden", "a/.b", ""):
        with pytest.raises(ValueError, match="relative name"):
            save_prompt(folder, name, make_prompt(1))
    with pytest.raises(ValueError, match="one prompt to save"):
        save_prompt(folder, "two", make_prompt(1, batch=2))
    large = Prompt(torch.full((1, LENGTH, WIDTH), 1e5), torch.zeros(1, POOLED))
    with pytest.raises(ValueError, match="finite"):
        save_prompt(folder, "large", large, torch.float16)
    save_prompt(folder, "large", large, torch.bfloat16)
    assert sorted(folder.rglob("*")) == sorted([*before, folder / "large.safetensors"])


def test_saving_replaces_whole_files_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_prompt(folder, "street", make_prompt(8))
    assert_same(read_prompt(folder, "street"), make_prompt(8))
    before = sorted(folder.rglob("*"))

    def stop_half_way(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("sr_models.t2i.prompts.save_file", stop_half_way)
    with pytest.raises(KeyboardInterrupt):
        save_prompt(folder, "street", make_prompt(9))
    assert sorted(folder.rglob("*")) == before
    assert_same(read_prompt(folder, "street"), make_prompt(8))


# ---- published prompts


@pytest.mark.parametrize("batched", [True, False])
def test_published_prompt_is_read_with_or_without_batch(tmp_path: Path, batched: bool) -> None:
    prompt = make_prompt(4)
    assert prompt.pooled is not None
    torch.save(prompt.embeds if batched else prompt.embeds[0], tmp_path / "prompt_embeds.pt")
    torch.save(prompt.pooled if batched else prompt.pooled[0], tmp_path / "pool_embeds.pt")
    assert_same(read_published_prompt(tmp_path), prompt)


class Code:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


def test_published_files_that_hold_something_else_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(torch.zeros(1, POOLED), tmp_path / "pool_embeds.pt")
    with pytest.raises(FileNotFoundError, match=r"prompt_embeds\.pt"):
        read_published_prompt(tmp_path)
    for content in ({"a": torch.zeros(1)}, torch.zeros(2, LENGTH, WIDTH), torch.zeros(3), Code()):
        torch.save(content, tmp_path / "prompt_embeds.pt")
        with pytest.raises(ValueError, match="expected one tensor"):
            read_published_prompt(tmp_path)
    assert not (tmp_path / "executed").exists()
    (tmp_path / "prompt_embeds.pt").write_bytes(b"<html>")
    with pytest.raises(ValueError, match="expected one tensor"):
        read_published_prompt(tmp_path)


# ---- text encoders


def save_clip(folder: Path, place: str, seed: int, width: int, *, projection: bool) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    letters = [letter + end for end in ("", "</w>") for letter in string.ascii_lowercase]
    tokens = [*letters, "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
    tokenizer.save_pretrained(folder / f"tokenizer{place}")
    config = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=width,
        intermediate_size=16,
        projection_dim=width,
        num_hidden_layers=3,
        num_attention_heads=2,
        bos_token_id=len(tokens) - 2,
        eos_token_id=len(tokens) - 1,
        pad_token_id=len(tokens) - 1,
    )
    torch.manual_seed(seed)
    encoder = (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)
    encoder.save_pretrained(folder / f"text_encoder{place}")


def save_t5(folder: Path, width: int) -> None:
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -3.0) for letter in string.ascii_letters)]
    tokenizer = T5TokenizerFast(vocab=[*pieces, ("\u2581", -2.0)], extra_ids=0)
    tokenizer.save_pretrained(folder / "tokenizer_3")
    torch.manual_seed(3)
    config = T5Config(vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=16, num_layers=2, num_heads=2)
    T5EncoderModel(config).save_pretrained(folder / "text_encoder_3")


def save_index(folder: Path, kind: str, parts: dict[str, tuple[str | None, str | None]]) -> None:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind, "_diffusers_version": "0.42.1", **parts}))


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of the SD3 kind with widths 8 + 12 (CLIP) and 24 (T5), with nothing but text encoders."""
    from diffusers import SD3Transformer2DModel

    folder = tmp_path_factory.mktemp("sd3")
    save_clip(folder, "", 1, 8, projection=True)
    save_clip(folder, "_2", 2, 12, projection=True)
    save_t5(folder, 24)
    with torch.device("meta"):
        SD3Transformer2DModel(joint_attention_dim=24, num_layers=2).save_config(folder / "transformer")
    clip, tokenizer = ("transformers", "CLIPTextModelWithProjection"), ("transformers", "CLIPTokenizer")
    save_index(
        folder,
        "StableDiffusion3Pipeline",
        {
            "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
            "text_encoder": clip,
            "text_encoder_2": clip,
            "text_encoder_3": ("transformers", "T5EncoderModel"),
            "tokenizer": tokenizer,
            "tokenizer_2": tokenizer,
            "tokenizer_3": ("transformers", "T5TokenizerFast"),
            "transformer": ("diffusers", "SD3Transformer2DModel"),
            "vae": ("diffusers", "AutoencoderKL"),
        },
    )
    return folder


@pytest.fixture(scope="module")
def sd2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of the SD2 kind with width 8, with nothing but text encoders."""
    folder = tmp_path_factory.mktemp("sd2")
    save_clip(folder, "", 1, 8, projection=False)
    save_index(
        folder,
        "StableDiffusionPipeline",
        {
            "feature_extractor": ("transformers", "CLIPImageProcessor"),
            "safety_checker": (None, None),
            "scheduler": ("diffusers", "DDIMScheduler"),
            "text_encoder": ("transformers", "CLIPTextModel"),
            "tokenizer": ("transformers", "CLIPTokenizer"),
            "unet": ("diffusers", "UNet2DConditionModel"),
            "vae": ("diffusers", "AutoencoderKL"),
        },
    )
    return folder


@pytest.fixture(scope="module")
def sd3_encoders(sd3: Path) -> TextEncoders:
    return TextEncoders.from_pretrained(sd3, local_files_only=True)


def clip_by_hand(base: Path, place: str, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Last hidden state but one, and the projected vector of the text's end."""
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(base / f"tokenizer{place}")
    tokens = tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        encoder = CLIPTextModelWithProjection.from_pretrained(base / f"text_encoder{place}").eval()
        out = encoder(tokens, output_hidden_states=True)
    return out.hidden_states[-2], out.text_embeds


def test_sd3_prompt_is_the_three_encoders_side_by_side(sd3: Path, sd3_encoders: TextEncoders) -> None:
    from transformers import T5EncoderModel, T5TokenizerFast

    prompt = sd3_encoders.encode("sharp photo")
    assert prompt.shape == ((77 + 256, 24), (20,))
    assert prompt.pooled is not None
    assert not prompt.embeds.requires_grad
    assert not prompt.embeds.is_inference()
    first, second = clip_by_hand(sd3, "", "sharp photo"), clip_by_hand(sd3, "_2", "sharp photo")
    torch.testing.assert_close(prompt.embeds[:, :77, :20], torch.cat([first[0], second[0]], dim=-1))
    assert not prompt.embeds[:, :77, 20:].any()
    torch.testing.assert_close(prompt.pooled, torch.cat([first[1], second[1]], dim=-1))
    tokenizer = T5TokenizerFast.from_pretrained(sd3 / "tokenizer_3")
    tokens = tokenizer("sharp photo", padding="max_length", max_length=256, return_tensors="pt").input_ids
    with torch.no_grad():
        t5 = T5EncoderModel.from_pretrained(sd3 / "text_encoder_3").eval()(tokens)[0]
    torch.testing.assert_close(prompt.embeds[:, 77:], t5)


def test_encoding_twice_is_equal_and_texts_differ(sd3: Path, sd3_encoders: TextEncoders) -> None:
    again = TextEncoders.from_pretrained(str(sd3), local_files_only=True)
    prompt = sd3_encoders.encode("sharp photo")
    assert_same(prompt, sd3_encoders.encode("sharp photo"))
    assert_same(prompt, again.encode("sharp photo"))
    assert not torch.equal(prompt.embeds, sd3_encoders.encode("").embeds)


def test_a_base_without_t5_has_zeros_there(sd3: Path, sd3_encoders: TextEncoders, tmp_path: Path) -> None:
    base = tmp_path / "sd3"
    shutil.copytree(sd3, base, ignore=shutil.ignore_patterns("*_3"))
    index = json.loads((base / "model_index.json").read_text())
    save_index(base, index.pop("_class_name"), {**index, "text_encoder_3": (None, None), "tokenizer_3": (None, None)})
    prompt = TextEncoders.from_pretrained(base, local_files_only=True).encode("sharp photo")
    full = sd3_encoders.encode("sharp photo")
    assert prompt.shape == full.shape
    assert torch.equal(prompt.embeds[:, :77], full.embeds[:, :77])
    assert full.embeds[:, 77:].any()
    assert not prompt.embeds[:, 77:].any()


def test_sd2_prompt_is_the_last_hidden_state(sd2: Path) -> None:
    from transformers import CLIPTextModel, CLIPTokenizer

    prompt = TextEncoders.from_pretrained(sd2, local_files_only=True).encode("sharp photo")
    assert prompt.shape == ((77, 8), None)
    tokenizer = CLIPTokenizer.from_pretrained(sd2 / "tokenizer")
    tokens = tokenizer("sharp photo", padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(prompt.embeds, CLIPTextModel.from_pretrained(sd2 / "text_encoder").eval()(tokens)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtype_of_the_encoders_is_that_of_the_prompt(sd3: Path, sd3_encoders: TextEncoders, dtype: torch.dtype) -> None:
    low = TextEncoders.from_pretrained(sd3, local_files_only=True, dtype=dtype).encode("sharp photo")
    assert low.pooled is not None
    assert (low.embeds.dtype, low.pooled.dtype) == (dtype, dtype)
    torch.testing.assert_close(low.embeds.float(), sd3_encoders.encode("sharp photo").embeds, atol=0.1, rtol=0.1)


def test_a_long_text_is_cut_off_silently(sd3_encoders: TextEncoders, capfd: pytest.CaptureFixture[str]) -> None:
    long = "abc " * 200
    prompt = sd3_encoders.encode(long)
    assert prompt.shape == ((333, 24), (20,))
    assert torch.equal(prompt.embeds[:, :77], sd3_encoders.encode(long + "tail").embeds[:, :77])
    assert "truncated" not in capfd.readouterr().err


def test_a_base_that_is_not_there_is_one_clear_line(tmp_path: Path, sd2: Path) -> None:
    for base in (tmp_path / "none", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"model_index\.json or a hub id"):
            TextEncoders.from_pretrained(base)
    with pytest.raises(FileNotFoundError, match=r"owner/sd3-that-is-not-here in the local cache.*without --offline"):
        TextEncoders.from_pretrained("owner/sd3-that-is-not-here", local_files_only=True)
    broken = tmp_path / "sd2"
    shutil.copytree(sd2, broken, ignore=shutil.ignore_patterns("text_encoder"))
    with pytest.raises((FileNotFoundError, ValueError), match=r"expected .*text encoders.*restore the") as caught:
        TextEncoders.from_pretrained(broken, local_files_only=True)
    assert "\n" not in str(caught.value)
    (broken / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match=r"expected JSON in .*model_index\.json"):
        TextEncoders.from_pretrained(broken)
    save_index(broken, "FluxPipeline", {})
    with pytest.raises(ValueError, match="got FluxPipeline"):
        TextEncoders.from_pretrained(broken)


def test_broken_weights_are_one_clear_line(tmp_path: Path, sd2: Path) -> None:
    broken = tmp_path / "sd2"
    shutil.copytree(sd2, broken)
    (broken / "text_encoder" / "model.safetensors").write_bytes(b"abc")
    with pytest.raises(ValueError, match=r"expected the text encoders .*restore the files") as caught:
        TextEncoders.from_pretrained(broken, local_files_only=True)
    assert "\n" not in str(caught.value)


def test_an_unreachable_hub_is_told_by_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import DiffusionPipeline

    def load_config(*_: object, **__: object) -> None:
        try:
            raise ConnectionError("no route to the hub")
        except ConnectionError as error:
            raise OSError("owner/name has no model_index.json\nsee the documentation") from error

    monkeypatch.setattr(DiffusionPipeline, "load_config", load_config)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with pytest.raises(FileNotFoundError, match=r"got no route to the hub; check the name.*hf auth login") as caught:
        TextEncoders.from_pretrained("owner/name")
    assert "\n" not in str(caught.value)
