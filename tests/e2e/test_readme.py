"""Every command of the READMEs is run, in the order in which they stand, with a small budget."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sr_data.images import write_image

READMES = ("README.md", "apps/cli/README.md", "apps/bench/README.md", "packages/distill/README.md")
SMALL = shlex.split(
    "--steps 1 --set batch_size=2 --set validation.images=1 --set validation.hr_size=64 --set data.workers=0"
)
QUICK = shlex.split("--metric psnr --metric gmsd --jobs 1")
KNOWN: dict[str, list[str] | None] = {
    # command of a README -> options that make it small; None: too large for here, a test of its own runs it on less
    "sr-distill train rsd": SMALL,
    "sr-distill train teacher": SMALL,
    "sr-distill train tsd": [*SMALL, "--set", "schedule.latent_mse_until=0", "--set", "schedule.dasm_from=0"],
    "sr-distill train autoencoder": SMALL,
    "sr-distill train rsd --print-config": [],
    "sr-distill train rsd --data photos/ --steps 1000 --set optimizer.lr=5e-5": SMALL,
    "sr-distill train rsd --print-config > run.yaml": [],
    "sr-distill train rsd --config run.yaml": SMALL,
    "sr-distill upscale photo.jpg": [],
    "sr-distill upscale photos/ -o large/ --report run.json": [],
    "sr-distill upscale photo.jpg -o out.png --weights runs/rsd-tiny-001/model": [],
    "sr-bench complexity": None,  # test_bench_complexity
    "sr-bench quality --data pairs/ --model bicubic --model tiny-teacher --model tiny-student": QUICK,
    "sr-bench quality --data pairs/ --model bicubic --model tiny-student --out result": QUICK,
    "sr-bench quality --pred restored/ --gt hr/ --lr lr/": QUICK,
    "sr-bench quality --data pairs/ --model lanczos --model tiny-student,fidelity=1 --pred SUPIR=restored/"
    " --protocol osediff-crops512": None,  # test_bench_quality
    "sr-bench compare result -o report.html": [],
    "sr-bench paper": [],
    "sr-bench paper rsd-3 --dataset RealSR --join result/result.json --other-protocol": [],
    "sr-bench study A=restored-a/ B=restored-b/ --lr lr/ --gt hr/ --answers study.sqlite": None,  # test_bench_study
    "sr-bench study-results study.sqlite": None,
    "sr-bench ablation": [],
    "sr-bench ablation rsd --out ablation --set lpips.backbone=random": None,  # test_bench_training
    "sr-bench ablation objectives --out objectives --set lpips.backbone=random": None,
    "sr-bench ablation tsd --out tsd": None,
    "sr-bench ablation dasm --out dasm": None,
    "sr-bench training --preset rsd-paper --set micro_batch=1 --set batch_size=1": None,
}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    """The lines of the bash blocks that start one of our commands, without ``uv run`` and comments."""
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [" ".join(word[2:]) for word in words if word[:2] == ["uv", "run"] and word[2].startswith("sr-")]


@pytest.mark.parametrize("readme", READMES)
def test_every_command_of_a_readme_is_known_here(repository: Path, readme: str) -> None:
    found = commands(repository / readme)
    assert [command for command in found if command not in KNOWN] == [], "add it to KNOWN with a small budget"
    assert found or readme == "packages/distill/README.md"


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the READMEs take for granted: photo.jpg, photos/, pairs/ with lr/ and hr/, and the same with restored/."""
    rng = np.random.default_rng(0)
    sizes = {"photo.jpg": (30, 22), "photos/a.jpg": (96, 80), "photos/b.png": (64, 64), "restored/a.png": (64, 64)}
    for folder in ("", "pairs/"):
        sizes |= {f"{folder}lr/a.png": (16, 16), f"{folder}hr/a.png": (64, 64)}
    for name, (width, height) in sizes.items():
        write_image(tmp_path / name, rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("readme", READMES)
def test_the_commands_of_a_readme_run_in_order(run: Any, repository: Path, workplace: Path, readme: str) -> None:
    for command in commands(repository / readme):
        words, _, written = command.partition(" > ")
        small = KNOWN[command]
        if small is None:
            continue
        outcome = run(*words.split(), *small)
        assert outcome.code == 0, (command, outcome.err)
        if written:
            (workplace / written).write_text(outcome.out)
        if " photos/ -o large/ " in command:
            assert {path.name for path in Path("large").glob("[!.]*")} == {"a.png", "b.png"}
            assert Path("run.json").is_file()
        elif " upscale " in command:
            path = Path("out.png" if "-o out.png" in command else "photo_x4.png")
            with Image.open(path) as image:
                assert image.size == (120, 88)
            path.unlink()


def test_the_python_of_the_readme_runs(repository: Path, workplace: Path) -> None:
    for source in blocks(repository / "README.md", "python"):
        exec(compile(source, "README.md", "exec"), {})
    with Image.open(workplace / "out.png") as image:
        assert image.size == (120, 88)
