"""Runs what a folder of results lacks, part by part, beside any number of other processes that do the same.

A range of images is claimed before it is run, and looked for once more after that, so none is run twice. What other
processes run is left for later; when nothing else is left, this one waits for them, and takes over what they leave undone.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from robench import files
from robench.claim import Claims
from robench.errors import AttackError, CheckpointError, StoppedError
from robench.job import Job
from robench.part import Part, Parts, Span, cover, gaps, together
from robench.protocols import Monitor, Progress
from robench.results import Failure, Result, Store

if TYPE_CHECKING:
    from robench.evaluation import Engine

PAUSE = 0.5  # seconds between two looks at what others do

Ran = tuple[Job, Result | Failure, bool]


class Bar:
    """Progress over all jobs, in image passes; it never goes back.

    Args:
        monitor: told.
        jobs: what there is to do.
    """

    def __init__(self, monitor: Monitor, jobs: Sequence[Job]) -> None:
        self._monitor = monitor
        self._left = {job.cell.key for job in jobs}
        self._total = sum(job.passes for job in jobs)
        self._finished = self._reached = 0.0

    def at(self, job: Job, images: float, said: str = "") -> None:
        """So many images of a job are done, whoever did them."""
        here = self._finished + job.passes * min(images / job.cell.count, 1)
        self._reached = max(self._reached, min(here, self._total))
        self._monitor(Progress("evaluate", self._reached, self._total, {"cell": job.label, "": said}))

    def finish(self, job: Job) -> None:
        """A job is done."""
        if job.cell.key in self._left:
            self._left.remove(job.cell.key)
            self._finished += job.passes
            self.at(job, 0)


class Desk:
    """One job and what the folder of results holds of it."""

    def __init__(self, engine: Engine, job: Job, store: Store, bar: Bar, within: Sequence[Span] | None = None) -> None:
        self.engine, self.job, self.store, self.bar = engine, job, store, bar
        self.within = within
        self.parts = Parts(store.folder, job.cell, engine.tell)
        self.claims = Claims(self.parts.folder)
        self.size = job.size(engine.batch)

    def run(self) -> tuple[Result | Failure, bool] | None:
        """Run what is missing and nobody else runs.

        Returns:
            The record, and whether others completed it; None when all that is missing is run by others.
        """
        count = self.job.cell.count
        while True:
            if there := self._there():
                return there, True
            kept = self._kept()
            spans = [part.span for part in kept]
            if not list(gaps(spans, count, self.size)):
                return self._whole(kept), False
            self.bar.at(self.job, sum(stop - start for start, stop in spans))
            if not any(map(self._own, gaps(spans, count, self.size))):
                return None
            busy = self.claims.others()
            free = [span for span in gaps([*spans, *busy], count, self.size) if self.job.divisible or not busy]
            free = list(filter(self._own, free))
            if not free:
                return None
            with self.claims.held(*free[0]) as beat:
                if beat is None:
                    time.sleep(random.uniform(0, PAUSE / 10))  # noqa: S311 (not a secret)
                elif not self._there() and self._missing(free[0]):
                    record = self._attack(free[0], beat)
                    if record is not None:
                        return record, False

    @property
    def served(self) -> bool:
        """Whether all is there that this process was to run, though the cell is not whole."""
        spans = [part.span for part in self._kept()]
        return self.within is not None and not any(map(self._own, gaps(spans, self.job.cell.count, self.size)))

    def _own(self, span: Span) -> bool:
        """Whether any of a range is among those that this process is to run."""
        return self.within is None or any(start < span[1] and span[0] < stop for start, stop in self.within)

    def _there(self) -> Result | None:
        there = self.store.get(self.job.cell)
        if not isinstance(there, Result):
            return None
        self.parts.clear()
        return there

    def _kept(self) -> list[Part]:
        every = self.parts.every()
        return cover(every if self.job.divisible else [part for part in every if part.span == (0, part.cell.count)])

    def _missing(self, span: Span) -> bool:
        """Whether no other process has written any of a range since it was looked for."""
        return span in gaps([part.span for part in self._kept()], self.job.cell.count, self.size)

    def _attack(self, span: Span, beat: Callable[[], None]) -> Result | Failure | None:
        """Run a range; gives a record if that was the whole cell, or the end of it."""
        before = sum(part.stop - part.start for part in self._kept())

        def watch(share: float, said: str) -> None:
            beat()
            self.bar.at(self.job, before + share * (span[1] - span[0]), said)

        try:
            part = self.engine.run_part(self.job, *span, watch)
        except (CheckpointError, StoppedError):
            raise
        except Exception as error:
            if isinstance(error, AttackError):
                self.parts.drop()
            failure = self.engine.failure(self.job, error)
            self.store.put(failure)
            return failure
        if span == (0, self.job.cell.count):
            return self._whole([part])
        self.parts.put(part)
        return None

    def _whole(self, parts: Sequence[Part]) -> Result:
        record = together(parts, self.job.finds)
        self.store.put(record)
        self.parts.clear()
        return record


def run(
    engine: Engine, jobs: Sequence[Job], store: Store, within: Mapping[str, Sequence[Span]] | None = None
) -> Iterator[Ran]:
    """Run what the store does not hold yet.

    Args:
        engine: runs it.
        jobs: what is wanted.
        store: what is there.
        within: the ranges of images to keep to, by the key of their cell; all when None. A cell that is not whole after that
            is not yielded.

    Yields:
        The job, its record, and whether the record was there already, or was completed by another process.

    Raises:
        StoreError: if the folder cannot be written, before anything is run; or if it holds contradictory or damaged records.
    """
    todo = [job for job in jobs if not isinstance(store.get(job.cell), Result)]
    bar = Bar(engine.monitor, todo)
    for folder in (store.folder / "cells", store.folder) if todo else ():
        files.check_writable(folder)
    if not todo:
        files.sweep(store.folder)
    waiting = [Desk(engine, job, store, bar, None if within is None else within[job.cell.key]) for job in jobs]
    told: set[str] = set()
    while waiting:
        later = []
        for desk in waiting:
            came = desk.run()
            if came is None and desk.served:
                bar.finish(desk.job)
            elif came is None:
                later.append(desk)
            else:
                bar.finish(desk.job)
                yield desk.job, *came
        if later and len(later) == len(waiting):
            for desk in later:
                _tell_wait(desk, told)
            time.sleep(PAUSE)
        waiting = later


def collected(job: Job, store: Store) -> Result | Failure | None:
    """The record of a cell that other processes ran, put together if only that is left to do; None if images are missing."""
    record = store.get(job.cell)
    if isinstance(record, Result):
        return record
    parts = Parts(store.folder, job.cell)
    kept = cover(parts.every())
    if list(gaps([part.span for part in kept], job.cell.count, job.cell.count)):
        return record
    made = together(kept, job.finds)
    store.put(made)
    parts.clear()
    return made


def _tell_wait(desk: Desk, told: set[str]) -> None:
    """Say once of each claim who is waited for."""
    for (start, stop), holder in desk.claims.others().items():
        text = f"{desk.job.label}: waiting for images {start} to {stop - 1}, run by {holder.name}"
        if text not in told:
            told.add(text)
            desk.engine.tell(text)
