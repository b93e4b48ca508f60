"""``complexity.json``: what it holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from sr_bench.record import Provenance

FORMAT: Literal["sr-bench complexity 1"] = "sr-bench complexity 1"
NETWORKS = ("encode", "network", "decode")
PARTS = ("read", *NETWORKS, "color", "write")
"""Of a restoration, in their order; NETWORKS are those with parameters."""


class Spread(BaseModel):
    """Seconds of all rounds.

    Args:
        median: half of the rounds are faster.
        p10: a round that at most a tenth are faster than; of up to 10 rounds the fastest.
        p90: a round that at most a tenth are slower than; of up to 10 rounds the slowest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    median: float
    p10: float
    p90: float


class Memory(BaseModel):
    """Memory of the process in MiB.

    Args:
        kind: ``allocator``: tensors on the GPU, as torch counts them; ``resident``: all that the process has in memory,
            Python and torch among it.
        loaded: with the model in memory, before the first picture.
        peak: greatest, during the first restoration.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["allocator", "resident"]
    loaded: float
    peak: float


class Row(BaseModel):
    """One model on one device, in one precision, for one size and batch.

    Args:
        model: name as it was given.
        device: torch device; ``meta``: nothing was computed.
        dtype: fp32, bf16, fp16; ``-`` on meta.
        path: the whole path of computation, such as ``cpu, bf16 autocast, channels_last``.
        size: LR pixels along one side.
        batch: pictures at once.
        problem: why nothing was measured; None: it was.
        weights: ``stored``, ``random``, or ``none``: shapes alone.
        scale: enlargement.
        evaluations: of the network, NFE.
        color: correction of the model.
        parameters: by part, adapters included.
        adapters: parameters of LoRA layers among them.
        macs: multiplications with their additions by part, for the whole batch and all evaluations.
        rounds: restorations that were timed.
        seconds: by part, and ``total``, for the whole batch; empty: not timed.
        memory: None: not measured.
        shares: of the machine's ceiling by part, from 0 to 1: matrix rate for the networks (``networks``: all three),
            copy rate for ``color``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    device: str
    dtype: str
    path: str
    size: int
    batch: int
    problem: str | None = None
    weights: Literal["stored", "random", "none"] = "none"
    scale: int = 0
    evaluations: int = 0
    color: str = "none"
    parameters: Mapping[str, int] = Field(default_factory=dict)
    adapters: int = 0
    macs: Mapping[str, int] = Field(default_factory=dict)
    rounds: int = 0
    seconds: Mapping[str, Spread] = Field(default_factory=dict)
    memory: Memory | None = None
    shares: Mapping[str, float] = Field(default_factory=dict)


class Ceiling(BaseModel):
    """The machine's own limits, the best of all measurements of the run.

    Args:
        device: torch device.
        dtype: fp32, bf16 or fp16.
        operation: that reached ``matrix_gflops``, a large matrix product or 3x3 convolution, and whether with TF32.
        matrix_gflops: GFLOP/s of the operation.
        copy_gbs: GB/s, read and written.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str
    dtype: str
    operation: str
    matrix_gflops: float
    copy_gbs: float


class Published(BaseModel):
    """A row of a paper's table.

    Args:
        table: such as ``rsd-4``.
        source: such as ``RSD Table 4``.
        hardware: of the paper.
        method: as in the paper.
        values: nfe, seconds, parameters_m, memory_mb, as printed; what the table does not have is absent.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    table: str
    source: str
    hardware: str | None
    method: str
    values: Mapping[str, str]


class Complexity(BaseModel):
    """The result of a run.

    Args:
        format: of this file.
        rows: measured.
        ceilings: of the devices and precisions that were measured.
        published: rows of the papers, of other hardware.
        provenance: see there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["sr-bench complexity 1"] = FORMAT
    rows: tuple[Row, ...] = Field(min_length=1)
    ceilings: tuple[Ceiling, ...]
    published: tuple[Published, ...]
    provenance: Provenance
