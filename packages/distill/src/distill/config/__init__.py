"""Configuration of a run: presets, YAML files and ``key=value`` overrides become one frozen, checked object.

Unknown keys are refused with the nearest valid name. The resolved configuration is written into every run folder.
"""

from distill.config.reading import Run, parse_assignment, read_yaml, resolve, to_yaml
from distill.config.runs import (
    AnyRun,
    AutoencoderRun,
    DistillationRun,
    FakeModelRun,
    LatentRun,
    RSDRun,
    RunConfig,
    SinSRRun,
    TeacherRun,
    TermsRun,
    VSDRun,
)
from distill.config.sections import (
    CheckpointConfig,
    CodebookConfig,
    DataConfig,
    GuardConfig,
    LPIPSConfig,
    OptimizerConfig,
    PatchGANConfig,
    Section,
    StreamConfig,
    ValidationConfig,
)

__all__ = [
    "AnyRun",
    "AutoencoderRun",
    "CheckpointConfig",
    "CodebookConfig",
    "DataConfig",
    "DistillationRun",
    "FakeModelRun",
    "GuardConfig",
    "LPIPSConfig",
    "LatentRun",
    "OptimizerConfig",
    "PatchGANConfig",
    "RSDRun",
    "Run",
    "RunConfig",
    "Section",
    "SinSRRun",
    "StreamConfig",
    "TeacherRun",
    "TermsRun",
    "VSDRun",
    "ValidationConfig",
    "parse_assignment",
    "read_yaml",
    "resolve",
    "to_yaml",
]
