"""The tables that are repeated in miniature: rows, what each changes in the tiny run, and the papers' figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LPIPS = "terms.lpips=2"
GAN = "terms.gan=3e-3"


@dataclass(frozen=True)
class Variant:
    """A row of a table: its name, the run that it changes, what it changes, and the paper's row.

    Args:
        name: as the table shows it.
        published: the paper's figures, in the order of the table's columns.
        changes: ``key=value`` for the tiny preset of ``task``.
        task: of ``sr-distill train``.
    """

    name: str
    published: tuple[str, ...]
    changes: tuple[str, ...] = ()
    task: str = "rsd"

    @property
    def key(self) -> str:
        """Name of the folder of its results."""
        return "_".join((self.task, *self.changes)).replace("=", "-")


@dataclass(frozen=True)
class Table:
    """A table of the paper in miniature.

    Args:
        title: with the paper's number.
        columns: titles of the published figures.
        variants: rows.
        teacher: the paper's row of the teacher with all its steps, if the table has one.
    """

    title: str
    columns: tuple[str, ...]
    variants: tuple[Variant, ...]
    teacher: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ablation:
    """Tables that are made together, at equal cost.

    Args:
        tables: one or more; a row that stands in several is trained once.
        base: the row whose updates are given; the others get as many as cost the same.
        cost: what is equal, see :class:`sr_bench.ablation.costs.Cost`.
        points: how often a run is measured, evenly over its length; above 1 there is a figure.
        start: what the student is called before its training: a reference that the figure's lines begin at.
        drawn: which of the tables the figure shows.
    """

    tables: tuple[Table, ...]
    base: Variant
    cost: Literal["flops", "evaluations", "updates"]
    points: int = 1
    start: str = "teacher 1 step"
    drawn: int = 0

    @property
    def variants(self) -> dict[str, Variant]:
        """Every row once, by key."""
        return {variant.key: variant for table in self.tables for variant in table.variants}


_COLUMNS = ("PSNR", "SSIM", "LPIPS", "CLIPIQA", "MUSIQ")
_BASE = Variant("N = 4", ("24.92", "0.6956", "0.3552", "0.7518", "66.430"))

RSD = Ablation(
    tables=(
        Table(
            "Number of student timesteps N (RSD Table 5)",
            _COLUMNS,
            (
                Variant("N = 1", ("24.82", "0.6730", "0.4052", "0.7444", "64.290"), ("student_timesteps=1",)),
                Variant("N = 2", ("24.77", "0.6790", "0.3772", "0.7523", "65.760"), ("student_timesteps=2",)),
                _BASE,
                Variant("N = 8", ("25.63", "0.7268", "0.3199", "0.7286", "66.445"), ("student_timesteps=8",)),
                Variant("N = 15", ("25.91", "0.7435", "0.2940", "0.6857", "65.689"), ("student_timesteps=15",)),
            ),
        ),
        Table(
            "Supervised losses (RSD Table 6)",
            _COLUMNS,
            (
                Variant("distill only", _BASE.published),
                Variant("+ LPIPS", ("26.01", "0.7531", "0.2708", "0.7089", "65.178"), (LPIPS,)),
                Variant("+ GAN", ("24.98", "0.7241", "0.3064", "0.6970", "67.615"), (GAN,)),
                Variant("all", ("25.91", "0.7538", "0.2726", "0.7060", "65.860"), (LPIPS, GAN)),
            ),
        ),
    ),
    base=_BASE,
    cost="flops",
)

_DISTILL_ONLY = ("terms.inverse=null", "terms.consistency=null")
_REALSR = tuple(f"RealSR {name}" for name in _COLUMNS)
_OTHERS = ("RealSet65 CLIPIQA", "RealSet65 MUSIQ", *(f"ImageNet-Test {name}" for name in _COLUMNS))


def _row(name: str, task: str, changes: tuple[str, ...], published: str) -> Variant:
    return Variant(name, _figures(published), changes, task)


def _figures(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_DISTILLED = _row(
    "RSD, distill only",
    "rsd",
    (),
    "24.92 0.696 0.355 0.7518 66.430 0.7534 68.383 23.97 0.643 0.217 0.660 57.831",
)

OBJECTIVES = Ablation(
    tables=(
        Table(
            "Objectives (RSD Tables 1 and 2)",
            (*_REALSR, *_OTHERS),
            (
                _row(
                    "SinSR, distill only",
                    "sinsr",
                    _DISTILL_ONLY,
                    "26.14 0.732 0.357 0.6119 57.118 0.6822 61.267 24.69 0.664 0.222 0.607 53.316",
                ),
                _row(
                    "SinSR",
                    "sinsr",
                    (),
                    "25.83 0.717 0.365 0.6887 61.582 0.7150 62.169 24.56 0.657 0.221 0.611 53.357",
                ),
                _row(
                    "ResShift-VSD",
                    "vsd",
                    (),
                    "23.96 0.616 0.466 0.7479 63.298 0.7606 66.701 23.69 0.624 0.230 0.665 58.630",
                ),
                _DISTILLED,
                _row(
                    "RSD",
                    "rsd",
                    (LPIPS, GAN),
                    "25.91 0.754 0.273 0.7060 65.860 0.7267 69.172 24.31 0.657 0.193 0.681 58.947",
                ),
            ),
            teacher=_figures("26.49 0.754 0.360 0.5958 59.873 0.6537 61.330 25.01 0.677 0.231 0.592 53.660"),
        ),
    ),
    base=_DISTILLED,
    cost="evaluations",
    points=3,
)

_TSM = ("schedule.vsd_weight.start=1", "schedule.vsd_weight.end=1")
_DASM = ("schedule.dasm_from=null",)
_VELOCITY = ("parameterisation=velocity",)
_STRONG = ("terms.distillation=20",)
_TSD_FULL = "0.2743 0.2104 114.45 71.19 0.7160 0.6347 0.2967 0.2136 134.98 66.62 0.7344 0.5874"
_TSD_NO_TSM = "0.2934 0.2397 117.15 68.56 0.6987 0.6338 0.3176 0.2327 139.67 63.90 0.6958 0.5749"
_TSD_NO_DASM = "0.2873 0.2273 123.51 69.05 0.7031 0.6273 0.3097 0.2311 143.97 63.56 0.7123 0.5812"
_TSD_COLUMNS = (
    *(f"RealSR {name}" for name in ("LPIPS", "DISTS", "FID", "MUSIQ", "CLIPIQA", "MANIQA")),
    *(f"DRealSR {name}" for name in ("LPIPS", "DISTS", "FID", "MUSIQ", "CLIPIQA", "MANIQA")),
)


def _tsd_rows(strength: tuple[str, ...]) -> tuple[Variant, ...]:
    """Full, without TSM and without DASM, in the noise form and in the velocity form of the published code."""
    return tuple(
        _row(f"{title}, {form}", "tsd", (*change, *own, *strength), published)
        for form, own in (("noise", ()), ("velocity", _VELOCITY))
        for title, change, published in (
            ("full", (), _TSD_FULL),
            ("without TSM", _TSM, _TSD_NO_TSM),
            ("without DASM", _DASM, _TSD_NO_DASM),
        )
    )


TSD = Ablation(
    tables=(
        Table("Weight of the distillation as published (TSD-SR Table 4): gamma_2 = 1", _TSD_COLUMNS, _tsd_rows(())),
        Table(
            "Twenty times the weight, which shows the directions themselves: gamma_2 = 20",
            (),
            (
                *_tsd_rows(_STRONG),
                _row("no distillation", "tsd", ("terms.distillation=null",), ""),
            ),
        ),
    ),
    base=_tsd_rows(())[0],
    cost="updates",
    points=2,
    start="student 1 step, before",
    drawn=1,
)

ABLATIONS = {"rsd": RSD, "objectives": OBJECTIVES, "tsd": TSD}
