"""Generated training images: no download, no licence."""

from sr_data.synthetic.generate import generate_image

__all__ = ["generate_image"]
