"""The tables that are repeated in miniature: rows, what each changes in the tiny run, and the papers' figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sr_bench.paper.tables import paper_table
from sr_bench.quality.metrics import METRICS

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
        about: what is compared, in a few words.
        papers: names of the papers' tables (:mod:`sr_bench.paper.tables`) that this one repeats.
        seconds: of one update of the base row on one core of an x86 server, to tell what a run costs.
    """

    tables: tuple[Table, ...]
    base: Variant
    cost: Literal["flops", "evaluations", "updates"]
    points: int = 1
    start: str = "teacher 1 step"
    drawn: int = 0
    about: str = ""
    papers: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def variants(self) -> dict[str, Variant]:
        """Every row once, by key."""
        return {variant.key: variant for table in self.tables for variant in table.variants}


@dataclass(frozen=True)
class _Figures:
    """Columns of published figures: from which tables, of which dataset, which metrics."""

    tables: tuple[tuple[str, str], ...]
    metrics: tuple[tuple[str, ...], ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Titles, with the dataset where there are several."""
        several = len(self.tables) > 1
        return tuple(
            f"{dataset} {METRICS[metric].title}" if several else METRICS[metric].title
            for (_, dataset), metrics in zip(self.tables, self.metrics, strict=True)
            for metric in metrics
        )

    def of(self, method: str) -> tuple[str, ...]:
        """The figures of a method, as printed."""
        return tuple(
            paper_table(table).value(method, metric, dataset)
            for (table, dataset), metrics in zip(self.tables, self.metrics, strict=True)
            for metric in metrics
        )


_FULL_SIZE = ("psnr", "ssim", "lpips", "clipiqa", "musiq")
_STEPS = _Figures((("rsd-5", "RealSR"),), (_FULL_SIZE,))
_LOSSES = _Figures((("rsd-6", "RealSR"),), (_FULL_SIZE,))
_BASE = Variant("N = 4", _STEPS.of("N = 4"))

RSD = Ablation(
    tables=(
        Table(
            "Number of student timesteps N (RSD Table 5)",
            _STEPS.columns,
            tuple(
                _BASE if n == 4 else Variant(f"N = {n}", _STEPS.of(f"N = {n}"), (f"student_timesteps={n}",))
                for n in (1, 2, 4, 8, 15)
            ),
        ),
        Table(
            "Supervised losses (RSD Table 6)",
            _LOSSES.columns,
            (
                Variant("distill only", _LOSSES.of("RSD (distill only)")),
                Variant("+ LPIPS", _LOSSES.of("w/ LPIPS"), (LPIPS,)),
                Variant("+ GAN", _LOSSES.of("w/ GAN"), (GAN,)),
                Variant("all", _LOSSES.of("RSD"), (LPIPS, GAN)),
            ),
        ),
    ),
    base=_BASE,
    cost="flops",
    about="RSD: student timesteps N, supervised losses",
    papers=("rsd-5", "rsd-6"),
    seconds=1.8,
)

_DISTILL_ONLY = ("terms.inverse=null", "terms.consistency=null")
_MAIN = _Figures(
    (("rsd-1", "RealSR"), ("rsd-1", "RealSet65"), ("rsd-2", "ImageNet-Test")),
    (_FULL_SIZE, ("clipiqa", "musiq"), _FULL_SIZE),
)
_DISTILLED = Variant("RSD, distill only", _MAIN.of("RSD (distill only)"))

OBJECTIVES = Ablation(
    tables=(
        Table(
            "Objectives (RSD Tables 1 and 2)",
            _MAIN.columns,
            (
                Variant("SinSR, distill only", _MAIN.of("SinSR (distill only)"), _DISTILL_ONLY, "sinsr"),
                Variant("SinSR", _MAIN.of("SinSR"), (), "sinsr"),
                Variant("ResShift-VSD", _MAIN.of("ResShift-VSD"), (), "vsd"),
                _DISTILLED,
                Variant("RSD", _MAIN.of("RSD"), (LPIPS, GAN)),
            ),
            teacher=_MAIN.of("ResShift"),
        ),
    ),
    base=_DISTILLED,
    cost="evaluations",
    points=3,
    about="objectives from one teacher: SinSR, ResShift-VSD, RSD",
    papers=("rsd-1", "rsd-2"),
    seconds=1.8,
)

_TSM = ("schedule.vsd_weight.start=1", "schedule.vsd_weight.end=1")
_DASM = ("schedule.dasm_from=null",)
_VELOCITY = ("parameterisation=velocity",)
_STRONG = ("terms.distillation=20",)
_CROPS = ("lpips", "dists", "fid", "musiq", "clipiqa", "maniqa-pipal")
_PARTS = _Figures((("tsd-4", "RealSR"), ("tsd-4", "DRealSR")), (_CROPS, _CROPS))
_BEFORE = "student 1 step, before"


def _tsd_rows(strength: tuple[str, ...]) -> tuple[Variant, ...]:
    """Full, without TSM and without DASM, in the noise form and in the velocity form of the published code."""
    return tuple(
        Variant(f"{title}, {form}", _PARTS.of(published), (*change, *own, *strength), "tsd")
        for form, own in (("noise", ()), ("velocity", _VELOCITY))
        for title, change, published in (
            ("full", (), "Full"),
            ("without TSM", _TSM, "w/o TSM"),
            ("without DASM", _DASM, "w/o DASM"),
        )
    )


TSD = Ablation(
    tables=(
        Table("Weight of the distillation as published (TSD-SR Table 4): gamma_2 = 1", _PARTS.columns, _tsd_rows(())),
        Table(
            "Twenty times the weight, which shows the directions themselves: gamma_2 = 20",
            (),
            (
                *_tsd_rows(_STRONG),
                Variant("no distillation", (), ("terms.distillation=null",), "tsd"),
            ),
        ),
    ),
    base=_tsd_rows(())[0],
    cost="updates",
    points=2,
    start=_BEFORE,
    drawn=1,
    about="TSD: without TSM, without DASM, in noise and in velocity",
    papers=("tsd-4",),
    seconds=1.2,
)

_SAMPLING = _Figures((("tsd-6", "DRealSR"),), (_CROPS,))


def _dasm_row(n: int, s: int) -> Variant:
    """Directions at N times, s indexes apart, from the first update on; all but the first weigh 0.3 as published."""
    weights = ",".join(["1", *["0.3"] * (n - 1)])
    changes = ("schedule.dasm_from=0", f"dasm.weights=[{weights}]", f"dasm.stride={s}")
    name = f"N = {n}, s = {s}"
    return Variant(name, _SAMPLING.of(name), changes, "tsd")


DASM = Ablation(
    tables=(
        Table(
            "N and s of distribution-aware sampling (TSD-SR Table 6)",
            _SAMPLING.columns,
            tuple(_dasm_row(n, s) for n, s in ((2, 50), (4, 50), (8, 50), (4, 25), (4, 100))),
        ),
    ),
    base=_dasm_row(4, 50),
    cost="updates",
    points=2,
    start=_BEFORE,
    about="TSD: N and s of distribution-aware sampling",
    papers=("tsd-6",),
    seconds=1.2,
)

ABLATIONS = {"rsd": RSD, "objectives": OBJECTIVES, "tsd": TSD, "dasm": DASM}


def find_ablation(name: str) -> Ablation:
    """An ablation by its name, or by the name of a paper's table that it repeats.

    Raises:
        ValueError: there is none.
    """
    for key, ablation in ABLATIONS.items():
        if name == key or name in ablation.papers:
            return ablation
    papers = (table for ablation in ABLATIONS.values() for table in ablation.papers)
    raise ValueError(
        f"expected an ablation of {', '.join(ABLATIONS)}, or one of the tables {', '.join(papers)}, got {name!r}; "
        "`sr-bench ablation` lists them"
    )
