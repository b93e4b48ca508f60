"""How a model is computed: device, precision, memory layout, compiled or not, and which of these is fastest here."""

from sr_models.compute.choice import Choice, apply, choose
from sr_models.compute.paths import DTYPES, Compute, candidates, choose_device, has_fast_bf16, parse_dtype
from sr_models.compute.table import Timing, cache_folder, fastest, measure, processor_name

__all__ = [
    "DTYPES",
    "Choice",
    "Compute",
    "Timing",
    "apply",
    "cache_folder",
    "candidates",
    "choose",
    "choose_device",
    "fastest",
    "has_fast_bf16",
    "measure",
    "parse_dtype",
    "processor_name",
]
