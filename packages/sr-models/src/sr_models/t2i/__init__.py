"""Text-to-image teachers (SD3, SD2.1) through diffusers, LoRA through peft; the extra ``sr-models[t2i]``.

Raises:
    ModuleNotFoundError: on import, where the extra is not installed.
"""

import logging
from importlib.util import find_spec

if _missing := [name for name in ("diffusers", "peft", "transformers") if find_spec(name) is None]:
    raise ModuleNotFoundError(
        f"expected the extra t2i, got no {', '.join(_missing)}; install it with: pip install 'sr-models[t2i]'"
    )

# bitsandbytes, which peft imports where it is installed, says at import that it lacks an optional kernel.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
