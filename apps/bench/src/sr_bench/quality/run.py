"""Restore, measure, write down."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from distill.folder import write_text
from sr_bench.quality import methods, tables
from sr_bench.quality.folders import Pictures, by_name, check_readable, check_restored, check_sources, pair
from sr_bench.quality.kept import Records, digest
from sr_bench.quality.measuring import Task, create, frechet_distance, how
from sr_bench.quality.metrics import METRICS, Metric, missing_files
from sr_bench.quality.request import Request, check_labels, choose_metrics, relative, settings_of
from sr_bench.quality.restoring import Made, restore_all
from sr_bench.quality.result import RESULT, MethodResult, QualityResult
from sr_bench.quality.settings import open_folder
from sr_bench.quality.values import Values
from sr_bench.record import provenance, write_json
from sr_models.store import sha256

VALUES, RESTORED, TABLE, CSV = "values.jsonl", "restored.jsonl", "table.md", "values.csv"
UNAVAILABLE = "not available: "


@dataclass(frozen=True)
class Candidate:
    """Pictures of one method: what is known of them before they are measured."""

    source: str
    files: Mapping[str, Path]
    folder: Path
    settings: Mapping[str, str | int | float | None]
    seconds: float | None
    sees_gt: bool = False


def measure(request: Request, console: Console | None = None) -> QualityResult:
    """Restore, measure, with ``out`` write everything down, print tables; what is there is not done again.

    Raises:
        FileExistsError: ``out`` holds something else, a measurement with other settings, or one that is at work.
        FileNotFoundError: a folder or a model is missing.
        ValueError: names or sizes do not fit, broken pictures, metrics that there are not, no metric with values, or
            a device that is not there.
    """
    console = console or Console()
    methods.check_device(request.device)
    metrics = choose_metrics(request)
    check_labels(request)
    pictures = pair(request.lr, request.gt, [pred.folder for pred in request.preds], request.limit)
    preds = {pred.label: by_name(pred.folder) for pred in request.preds}
    sources = [files for files in (pictures.lr, pictures.gt) if files is not None]
    check_readable(
        dict.fromkeys(files[name] for files in (*sources, *preds.values()) for name in pictures.names), console
    )
    check_sources(pictures, request.protocol)
    for files in preds.values():
        check_restored(files, pictures, request.protocol)
    with ExitStack() as stack:
        if request.out is not None:
            stack.callback(open_folder(request.out, settings_of(request, metrics, request.out)).release)
        place = request.out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sr-bench-")))
        models = _restore(request, pictures, place, console)
        folders = {pred.label: Candidate("folder", preds[pred.label], pred.folder, {}, None) for pred in request.preds}
        result = _measure(request, {**folders, **models}, pictures, metrics, console)
        if not any(method.values or method.whole for method in result.methods.values()):
            raise ValueError(
                f"expected values of at least one metric, got none: {'; '.join(tables.missing(result))}; "
                "give what is missing, or choose another --metric"
            )
        if request.out is not None:  # before anything is shown, which a closed pipe would end
            write_json(request.out / RESULT, result)
            write_text(request.out / TABLE, tables.markdown(result))
            write_text(request.out / CSV, tables.csv(result))
    tables.show(result, console)
    if request.out is not None:
        console.out(f"written to {request.out}", highlight=False)
    return result


def _restore(request: Request, pictures: Pictures, place: Path, console: Console) -> dict[str, Candidate]:
    """One method after the other, so that one model at a time is in memory."""
    records = Records(None if request.out is None else request.out / RESTORED, Made)
    found = {}
    for asked in request.models:
        method = methods.load(asked, scale=request.protocol.scale, seed=request.seed, device=request.device)
        restored = restore_all(asked, method, pictures, place, records, console)
        settings = {**method.settings, **({"made by": restored.note} if restored.note else {})}
        found[asked.label] = Candidate(
            method.source, restored.files, restored.folder, settings, restored.seconds, method.sees_gt
        )
    return found


def _measure(
    request: Request,
    candidates: Mapping[str, Candidate],
    pictures: Pictures,
    metrics: Sequence[str],
    console: Console,
) -> QualityResult:
    absent = {key: reason for key in metrics if (reason := _reason(METRICS[key], request, console))}
    present = [METRICS[key] for key in metrics if key not in absent]
    contents = _Contents()
    tasks = {label: _tasks(request, found, pictures, present, contents) for label, found in candidates.items()}
    out = request.out
    values = Values(None if out is None else out / VALUES)
    values.measure([task for found in tasks.values() for task in found], request.jobs, console)
    results = {}
    for label, candidate in candidates.items():
        found = _collect(tasks[label], values)
        found |= _whole(request, candidate, pictures, present, contents, values)
        missing = absent | {key: f"{UNAVAILABLE}{value}" for key, value in found.items() if isinstance(value, str)}
        results[label] = MethodResult(
            source=candidate.source,
            sees_gt=candidate.sees_gt,
            pictures=None if out is None else relative(candidate.folder, out),
            settings=candidate.settings,
            values={key: value for key, value in found.items() if isinstance(value, tuple)},
            whole={key: value for key, value in found.items() if isinstance(value, float)},
            missing={key: missing[key] for key in metrics if key in missing},
            seconds_per_image=candidate.seconds,
        )
    return QualityResult(
        protocol=request.protocol,
        images=pictures.names,
        lr=None if out is None or request.lr is None else relative(request.lr, out),
        gt=None if out is None or request.gt is None else relative(request.gt, out),
        methods=results,
        reference=request.reference,
        provenance=provenance(request.command, request.device, ("spandrel", "timm", "torchvision")),
    )


Found = dict[str, tuple[float, ...] | float | str]
"""Metric -> a value for each picture, one of all pictures together, or why there is none."""


class _Contents(dict[Path, str]):
    """sha256 of files, each read once."""

    def __missing__(self, path: Path) -> str:
        self[path] = sha256(path)
        return self[path]


def _tasks(
    request: Request,
    candidate: Candidate,
    pictures: Pictures,
    metrics: Sequence[Metric],
    contents: _Contents,
) -> list[Task]:
    """Every metric of every picture, picture by picture, so that the time left is a fair guess."""
    tasks = []
    protocol = request.protocol
    one_by_one = [(metric, how(metric, protocol)) for metric in metrics if metric.reads != "all"]
    for name in pictures.names:
        for metric, way in one_by_one:
            folder = {"gt": pictures.gt, "lr": pictures.lr}.get(metric.reads)
            reference = None if folder is None else folder[name]
            picture = candidate.files[name]
            content = "" if reference is None else contents[reference]
            key = (contents[picture], content, way)
            tasks.append(
                Task(metric.key, protocol.color, protocol.crop_border, picture, reference, request.device, key)
            )
    return tasks


def _collect(tasks: Sequence[Task], values: Values) -> Found:
    found: Found = {}
    for task in tasks:
        value, before = values[task.key], found.get(task.metric, ())
        if isinstance(before, tuple):
            found[task.metric] = f"{value} ({task.picture.name})" if isinstance(value, str) else (*before, value)
    return found


def _whole(
    request: Request,
    candidate: Candidate,
    pictures: Pictures,
    metrics: Sequence[Metric],
    contents: _Contents,
    values: Values,
) -> Found:
    """Metrics of all pictures together."""
    found: Found = {}
    for metric in metrics:
        if metric.reads == "all" and pictures.gt is not None:
            restored, truth = ([files[name] for name in pictures.names] for files in (candidate.files, pictures.gt))
            one, two = (digest([contents[file] for file in files]) for files in (restored, truth))
            found[metric.key] = values.once(
                (one, two, how(metric, request.protocol)),
                partial(frechet_distance, restored, truth, request.device, request.protocol.crop_border),
            )
    return found


def _reason(metric: Metric, request: Request, console: Console) -> str:
    """Why a metric cannot be measured; empty: it can."""
    missing = missing_files(metric)
    if not missing:
        return ""
    if not request.download:
        return f"{UNAVAILABLE}needs {', '.join(missing)}"
    console.out(f"fetching the weights of {metric.title}", highlight=False)
    try:
        create(metric, request.protocol.color, "cpu")  # once, before processes would do so at the same time
    except Exception as error:  # of the network, and of all that loads weights
        return f"{UNAVAILABLE}needs {', '.join(missing)}, which could not be fetched: {' '.join(str(error).split())}"
    return ""
