"""``sr-distill upscale``: restore one photograph, or folders of them."""
