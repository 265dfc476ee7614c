"""One run: what was asked before and is there, what is still to be made, and the making of it."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from console import UserError

from .folder import Result, RunFolder
from .record import Made, Record, Task, task_of
from .schedule import Workers
from .settings import Settings

MOST_IN_A_ROW = 25  # failures after which something is wrong with more than the records


@dataclass
class Run:
    """Records, and the folder of what comes of them.

    records   those that are asked for, in order
    settings  for each task
    seed      that all records' seeds follow from
    """

    folder: RunFolder
    records: Sequence[Record]
    settings: Settings
    seed: int
    _failures: int = field(default=0, init=False)  # in a row

    def results(self) -> dict[str, Result]:
        """What came of each record, by id and in the records' order."""
        known = self.folder.results
        return {record.id: known[record.id] for record in self.records if record.id in known}

    def todo(self, retry_failed: bool) -> list[Record]:
        """The records that need work; one that is wrong needs none, and is written down as failed.

        Raises UserError where a record is not what it was when it was made.
        """
        todo = []
        for record in self.records:
            result = self.folder.results.get(record.id)
            if record.wrong:
                if result is None or result.get("error") != record.wrong:
                    self._keep(record, Made(error=record.wrong))
            elif not self._is_done(record, result, retry_failed):
                todo.append(record)
        return todo

    def _is_done(self, record: Record, result: Result | None, retry_failed: bool) -> bool:
        if result is None:
            return False
        if "error" in result:
            return not retry_failed
        try:
            changed = task_of(record, self.settings, self.seed).asked() != result.get("asked")
        except (OSError, ValueError):
            changed = True
        if changed:
            pictures = ", ".join(str(source) for source in record.images if isinstance(source, Path))
            raise UserError(
                f"--data: record {record.id!r} is not what it was when it was made: its words, its settings or its "
                f"pictures{f' ({pictures})' if pictures else ''}; put them back, or name another folder for --out"
            )
        return self.folder.is_whole(result)

    def make(self, todo: Sequence[Record], workers: Workers, title: str) -> dict[str, Any]:
        """Makes what is to be made, and measures it.

        scheduling_ms is the median over records of all time from reading one to its last file, but for ComfyUI's own.
        """
        overhead: list[float] = []
        began = time.monotonic()
        total = len(self.records)
        bar = tqdm(
            total=total, initial=total - len(todo), desc=title, unit="record", mininterval=1.0, dynamic_ncols=True
        )
        with bar, contextlib.closing(self._tasks(todo, bar)) as tasks:
            for task, made in workers.run(tasks):
                self._keep(task.record, made, task)
                self._end(bar, made)
                overhead.append(time.monotonic() - task.begun - made.seconds)
        wall = time.monotonic() - began
        return {
            "workers": workers.count,
            "made_now": len(todo),
            "seconds": round(wall, 3),
            "records_a_second": round(len(todo) / wall, 4),
            "scheduling_ms": round(1e3 * statistics.median(overhead or [0.0]), 1),
        }

    def _tasks(self, todo: Sequence[Record], bar: tqdm) -> Iterator[Task]:
        """Each record with its pictures, read when a worker is there to take it."""
        for record in todo:
            try:
                task = task_of(record, self.settings, self.seed)
            except (OSError, ValueError) as error:
                made = Made(error=f"its image cannot be read: {error}")
                self._keep(record, made)
                self._end(bar, made)
            else:
                yield task

    def _end(self, bar: tqdm, made: Made) -> None:
        bar.update()
        self._failures = self._failures + 1 if made.error else 0
        if self._failures == MOST_IN_A_ROW:
            raise UserError(
                f"{MOST_IN_A_ROW} records in a row failed, the last: {made.error}; see to it, then start again with "
                "--retry-failed"
            )

    def _keep(self, record: Record, made: Made, task: Task | None = None) -> None:
        """Writes what came of a record; `task` where it came to work."""
        result: dict[str, Any] = {"id": record.id, "seconds": round(made.seconds, 3)}
        if made.error or task is None:
            self.folder.keep({**result, "error": made.error}, {})
            return
        result["asked"] = task.asked()
        if made.images:
            result["seeds"] = list(task.work.seeds)
        if made.text is not None:
            result["answer"] = made.text
        if made.chances:
            result["chances"] = dict(zip(record.choices, (round(c, 6) for c in made.chances), strict=True))
        self.folder.keep(result, {**task.beside, **dict(zip(record.files, made.images, strict=True))})
