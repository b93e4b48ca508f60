"""One call of ``sr-distill upscale``: what is to be made, the loop over it, and how it ends."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

from sr_cli.main import one_line
from sr_cli.upscale.job import Resolver, read_source, restore
from sr_cli.upscale.plan import Found, Job, find, place
from sr_cli.upscale.record import RECORD, Record, Stamp, judge, read_entries, remove_stale, stamp
from sr_cli.upscale.report import Entry, RunReport
from sr_cli.upscale.request import Request, is_lossy
from sr_cli.upscale.screen import Screen
from sr_cli.upscale.settings import FORMATS, Settings
from sr_data.pictures import Picture
from sr_models.restorable import choose_steps

FAILED = 1
INTERRUPTED = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Unexpected(ValueError):
    """A picture failed with an error that nobody thought of; the message has its type."""


class Terminated(BaseException):
    """SIGTERM arrived."""


def load(settings: Settings) -> Resolver:
    """Load the model that the settings name."""
    from sr_models import SuperResolver

    return SuperResolver.from_pretrained(
        settings.weights,
        settings.device,
        settings.dtype,
        base=settings.base,
        compile=settings.compile,
        backend=settings.backend,
    )


def run(request: Request, loader: Callable[[Settings], Resolver] = load) -> int:
    """Restore all pictures of a request; return the exit code.

    Args:
        request: what was asked for.
        loader: gives the model; is called once, and only if there is something to make.

    Raises:
        ValueError: nothing could be started, or the one picture could not be restored.
    """
    request.check()
    stdout = sys.stdout
    with ExitStack() as stack:
        stack.enter_context(_sigterm())
        if request.to_stdout:
            stack.enter_context(redirect_stdout(sys.stderr))
        try:
            return _Run(request, loader, stdout.buffer).go()
        except Terminated:  # while the model was loaded
            print("interrupted", file=sys.stderr)
            return INTERRUPTED[signal.SIGTERM]


class _Run:
    """The state of a run: jobs with their entries, the model once it is needed, the records of the output folders."""

    def __init__(self, request: Request, loader: Callable[[Settings], Resolver], stdout: BinaryIO) -> None:
        self.request = request
        self.settings = request.settings
        self._loader = loader
        self._stdout = stdout
        self._resolver: Resolver | None = None
        self._told = False
        self._records: dict[Path, Record] = {}
        self._first: tuple[Picture, Any] | None = None

    def go(self) -> int:
        """Plan, restore, tell."""
        request = self.request
        found = find(request.paths, request.output)
        jobs = self._place(found)
        self._check_report(found, jobs)
        entries = [Entry(job.source.name, job.output) for job in jobs]
        failed = [Entry(name, "", "failed", error=error) for name, error in found.failed]
        self.identity = self.settings.identity()
        self.report = RunReport(request.report, request.content(), [*failed, *entries])
        self.report.model = {"weights": self.settings.weights, "sha256": self.identity["weights"]}
        todo = self._judge(jobs, entries)
        self.screen = Screen(len(todo), quiet=request.quiet, to_stderr=request.to_stdout)
        self._tell_skipped(entries)
        self.report.write("running")
        try:
            with ExitStack() as stack, self.screen:
                if todo:
                    self._prepare(todo, stack)
                for job, entry in todo:
                    self._one(job, entry)
                    self.report.write("running")
        except (KeyboardInterrupt, Terminated) as stop:
            return self._interrupted(stop)
        except BaseException:
            self.report.write("failed")
            raise
        self.report.write("finished")
        return self._tell_end()

    def _place(self, found: Found) -> list[Job]:
        """Return the jobs; the model is asked for its scale only where a name has to say it."""
        request, settings = self.request, self.settings
        suffix = FORMATS.get(settings.format or "png")  # None for "same"
        label = settings.label
        if label is None and request.output is None and not request.to_stdout:
            if request.alone:  # a bad picture is refused before the model is loaded
                self._first = self._read(Job(found.sources[0], None))
            label = f"x{self._model().scale}"
        return place(found.sources, request.output, label=label or "", suffix=suffix, alone=request.alone)

    def _check_report(self, found: Found, jobs: list[Job]) -> None:
        targets = [job.target for job in jobs if job.target is not None]
        records = {job.root / RECORD for job in jobs if job.root is not None}
        failed = [Path(name) for name, _ in found.failed]
        self.request.check_report([*(job.source.path for job in jobs), *targets, *records, *failed])

    def _judge(self, jobs: list[Job], entries: list[Entry]) -> list[tuple[Job, Entry]]:
        """Return what is to be made; the entries of the others say why they are not."""
        known = {root: read_entries(root) for root in {job.root for job in jobs} if root is not None}
        todo = []
        for job, entry in zip(jobs, entries, strict=True):
            if job.target is not None:
                made = known[job.root].get(job.target.relative_to(job.root).as_posix()) if job.root else None
                verdict = judge(job.target, job.source.path, made, self.identity, overwrite=self.request.overwrite)
                entry.notes += [verdict.why] if verdict.why else []
                if not verdict.make:
                    entry.status = "skipped"
                    continue
            todo.append((job, entry))
        return todo

    def _prepare(self, todo: list[tuple[Job, Entry]], stack: ExitStack) -> None:
        """Load the model, take the records of the output folders, and clear away what a killed run left in them."""
        if self.request.alone and self._first is None:
            self._first = self._read(todo[0][0])
        choose_steps(self._model().model, self.settings.steps)  # before the first picture, not with each of them
        for root in {job.root for job, _ in todo if job.root is not None}:
            self._records[root] = stack.enter_context(Record(root))
        remove_stale(job.target for job, _ in todo if job.root is not None and job.target is not None)

    def _model(self) -> Resolver:
        if self._resolver is None:
            self._resolver = self._loader(self.settings)
        return self._resolver

    def _one(self, job: Job, entry: Entry) -> None:
        """Restore one picture; where it is one of several, a failure is only noted."""
        self.screen.begin(job.source.name)
        try:
            self._restore(job, entry)
        except (KeyboardInterrupt, Terminated):
            entry.status = "interrupted"
            raise
        except Exception as error:
            entry.status, entry.error = "failed", _reason(error)
            if os.environ.get("SR_DISTILL_DEBUG"):
                raise
            if self.request.alone:
                raise _told(error, job) from error
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise  # so would all others
        else:
            self._tell_compute()
        self.screen.end(entry)

    def _read(self, job: Job) -> tuple[Picture, Stamp]:
        try:
            return read_source(job, self.request.max_pixels)
        except Exception as error:
            if not self.request.alone or os.environ.get("SR_DISTILL_DEBUG"):
                raise
            raise _told(error, job) from error

    def _restore(self, job: Job, entry: Entry) -> None:
        settings = self.settings
        picture, source = self._first or self._read(job)
        self._first = None
        height, width = picture.pixels.shape[:2]
        entry.input_size = (width, height)
        record = self._records[job.root] if job.root else None
        if record and job.target:
            record.write(job.target, self.identity, source, None)
        suffix = job.target.suffix if job.target else FORMATS[settings.format or "png"]
        restore(
            job,
            picture,
            self._model(),
            settings.options(height, width),
            entry,
            stdout=self._stdout,
            format=suffix,
            quality=settings.quality if is_lossy(suffix) else None,  # "same" meets both kinds
            progress=self.screen.tiles,
        )
        if record and job.target:
            record.write(job.target, self.identity, source, stamp(job.target))

    def _tell_compute(self) -> None:
        """Say once how the model is computed; after the first picture, so that an error stays the only line."""
        compute = getattr(self._resolver, "compute", None)
        if self._told or compute is None:
            return
        self._told = True
        self.report.model["compute"] = compute.describe()
        choice = getattr(self._resolver, "choice", None)
        if not self.request.quiet:
            print("computed on", compute.describe(), file=sys.stderr)
            for line in choice.lines() if choice is not None and not choice.from_cache else ():
                print(line, file=sys.stderr)

    def _tell_skipped(self, entries: list[Entry]) -> None:
        skipped = [entry for entry in entries if entry.status == "skipped"]
        before = sum(entry.notes == ["done before"] for entry in skipped)
        if before and len(entries) > 1:
            self.screen.line(f"{before} of {len(entries)} pictures were done before")
        for entry in skipped:
            if entry.notes != ["done before"] or len(entries) == 1:
                self.screen.line(entry.line())

    def _interrupted(self, stop: BaseException) -> int:
        self.report.write("interrupted")
        self._tell_failed()
        done = sum(entry.status == "done" for entry in self.report.entries)
        more = "; the same command continues" if not self.request.alone else ""
        self.screen.error(f"interrupted: {done} of {self.screen.total} pictures made{more}")
        return INTERRUPTED[signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT]

    def _tell_end(self) -> int:
        """Name what failed, count, and return the exit code."""
        failed, entries = self._tell_failed(), self.report.entries
        if len(entries) > 1 or failed:
            counts = {status: sum(entry.status == status for entry in entries) for status in ("done", "skipped")}
            self.screen.line(f"{counts['done']} done, {counts['skipped']} skipped, {failed} failed")
        return FAILED if failed else 0

    def _tell_failed(self) -> int:
        failed = [entry for entry in self.report.entries if entry.status == "failed"]
        for entry in failed:
            self.screen.error(f"failed: {entry.line()}")
        return len(failed)


def _told(error: Exception, job: Job) -> Exception:
    """Return an error that ends in one line: the same, or one with the name of what nobody thought of."""
    expected = isinstance(error, ValueError | OSError | ModuleNotFoundError)
    return error if expected else Unexpected(f"{job.source.name}: {_reason(error)}")


def _reason(error: Exception) -> str:
    text = one_line(error)
    return text if isinstance(error, ValueError | OSError) and text else f"{type(error).__name__}: {text}"


@contextmanager
def _sigterm() -> Iterator[None]:
    """Make SIGTERM an exception, so that unfinished files are removed and the report is written."""
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
