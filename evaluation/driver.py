"""A run: finds the records that are not done, and makes them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from console import UserError
from record import LoadedRecord, Output, Record, Settings
from run_folder import RunFolder
from workers import InProcess, RayActors


@dataclass
class Driver:
    """The records in order, the settings of each task, and the run's seed, from which each record's seed is derived."""

    folder: RunFolder
    records: Sequence[Record]
    settings: Settings
    seed: int

    def pending(self, retry_failed: bool) -> list[Record]:
        """The records that are not done. Raises UserError if one has changed since it was made."""
        return [record for record in self.records if not self._is_done(record, retry_failed)]

    def _is_done(self, record: Record, retry_failed: bool) -> bool:
        result = self.folder.results.get(record.id)
        if result is None or "error" in result:
            return result is not None and not retry_failed
        try:
            if record.load(self.settings, self.seed).input_sha256 == result["input_sha256"]:
                return self.folder.is_whole(result)
        except (OSError, ValueError):
            pass  # a missing image counts as changed
        changed = f"record {record.id!r} has changed since it was made (prompt, settings or images)"
        raise UserError(f"--data: {changed}; restore it, or name another folder for --out.")

    def make(self, pending: Sequence[Record], workers: InProcess | RayActors, title: str) -> dict[str, Any]:
        """Makes the pending records; returns rates. scheduling_ms is the median time outside ComfyUI."""
        before = len(self.records) - len(pending)
        begun = time.monotonic()
        outside = []
        with tqdm(total=len(self.records), initial=before, desc=title, unit="record", mininterval=1.0) as bar:
            for task, made in workers.run(self._loaded(pending, bar)):
                self._keep(task.record, made, bar, task)
                outside.append(time.monotonic() - task.begun - made.seconds)
        return {
            "workers": workers.count,
            "records_made": len(pending),
            "records_per_second": round(len(pending) / (time.monotonic() - begun), 4),
            "scheduling_ms": round(1e3 * statistics.median(outside or [0.0]), 1),
        }

    def _loaded(self, pending: Sequence[Record], bar: tqdm) -> Iterator[LoadedRecord]:
        """Each record with its pictures, which are read when a worker takes it."""
        for record in pending:
            try:
                yield record.load(self.settings, self.seed)
            except (OSError, ValueError) as error:
                message = record.error or f"image: it cannot be read ({error}); correct its path."
                self._keep(record, Output(error=message), bar)

    def _keep(self, record: Record, made: Output, bar: tqdm, task: LoadedRecord | None = None) -> None:
        result: dict[str, Any] = {"id": record.id, "seconds": round(made.seconds, 3)}
        if made.error or task is None:
            result["error"] = made.error
            files: dict[str, bytes] = {}
        else:
            result |= {"input_sha256": task.input_sha256, **({"seeds": task.seeds} if made.images else {})}
            result |= {} if made.text is None else {"answer": made.text}
            if made.probabilities:
                result["probabilities"] = dict(
                    zip(record.choices, (round(p, 6) for p in made.probabilities), strict=True)
                )
            files = {**task.extra_files, **dict(zip(record.files, made.images, strict=True))}
        self.folder.keep(result, files)
        bar.update()
