"""What ``sr-distill upscale`` does."""

from __future__ import annotations

from pathlib import Path

from distill.ranks import choose_device
from sr_data.images import IMAGE_SUFFIXES, read_image, write_image
from sr_models import SuperResolver


def upscale_file(
    image: Path,
    output: Path | None,
    weights: str,
    *,
    steps: int | None,
    seed: int,
    tile: int | None,
    device: str,
    base: str | None,
) -> None:
    """Restore one picture file and say where the result is."""
    if output is not None and output.suffix.lower() not in IMAGE_SUFFIXES:
        # write_image would say so too, but only after the work is done.
        raise ValueError(f"expected an output ending in {', '.join(IMAGE_SUFFIXES)}, got {output}; use one of them")
    pixels = read_image(image)
    resolver = SuperResolver.from_pretrained(weights, choose_device(device), base=base)
    output = output or image.with_name(f"{image.stem}_x{resolver.scale}.png")
    write_image(output, resolver.upscale(pixels, seed=seed, steps=steps, tile=tile))
    height, width = pixels.shape[:2]
    print(f"{output}: {width * resolver.scale}x{height * resolver.scale} from {width}x{height}")
