"""Distributes records to one worker in this process, or to Ray's actors."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import workspace
from comfyui_worker import ComfyUIWorker, Setup
from console import UserError
from record import LoadedRecord, Output
from run_folder import difference, identity

TRIES = 3  # a record fails after it has lost this many workers
CRASHED = f"{TRIES} workers crashed while making this record; check their memory, then use --retry-failed."
LOCAL_STORE = 1 << 29  # bytes of shared memory for Ray if it runs on this machine alone


class InProcess:
    """One worker, without Ray."""

    def __init__(self, setup: Setup) -> None:
        self.count, self._worker = 1, ComfyUIWorker(setup)

    def run(self, tasks: Iterable[LoadedRecord]) -> Iterator[tuple[LoadedRecord, Output]]:
        """Takes a record whenever a worker is free; yields results in the order in which they finish."""
        return ((task, self._worker.run(task.work, task.seeds)) for task in tasks)


class RayActors:
    """Workers as Ray actors, each with a GPU if there are any. Ray restarts a lost worker on another node."""

    def __init__(self, setup: Setup, count: int) -> None:
        self._ray, self.count = _connected_ray(count, setup.cpu), count
        unit, needs = ("CPU", {"num_cpus": 1}) if setup.cpu else ("GPU", {"num_gpus": 1, "num_cpus": 1})
        there = int(self._ray.cluster_resources().get(unit, 0))
        if count > there:
            raise UserError(
                f"--workers: expected at most {there}, the number of {unit}s in the cluster, got {count}; use fewer."
            )
        remote = self._ray.remote(max_restarts=-1, max_task_retries=-1, **needs)(RemoteWorker)
        self._actors = [remote.remote(setup) for _ in range(count)]
        for actor in self._actors:
            self._get(actor.__ray_ready__.remote())

    def run(self, tasks: Iterable[LoadedRecord]) -> Iterator[tuple[LoadedRecord, Output]]:
        """As `InProcess.run`."""
        idle, waiting, again = list(self._actors), iter(tasks), []
        losses: Counter[str] = Counter()  # by record
        busy: dict[Any, tuple[Any, LoadedRecord | None]] = {}  # None: the worker is being restarted
        while True:
            # Read only now, so that memory contains only the records that are being made.
            while idle and (task := again.pop() if again else next(waiting, None)):
                actor = idle.pop()
                # Ray's own retries would be used up before it notices that a node is lost.
                busy[actor.run.options(max_task_retries=0).remote(task.work, task.seeds)] = actor, task
            if idle and not any(task for _, task in busy.values()):
                return
            (done,), _ = self._ray.wait(list(busy), num_returns=1)
            actor, task = busy.pop(done)
            try:
                made = self._get(done)
                idle.append(actor)
            except self._ray.exceptions.ActorUnavailableError:
                busy[actor.__ray_ready__.remote()] = actor, None
                made = Output(error=CRASHED)
                losses.update([task.record.id] if task else [])
                if task and losses[task.record.id] < TRIES:
                    again.append(task)
                    continue
            if task:
                yield task, made

    def _get(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.ActorDiedError as error:
            cause = getattr(error, "cause", None) or error
            last = str(cause).strip().splitlines()[-1]
            raise UserError(f"a worker did not start ({last}); correct this and start again.") from error


class RemoteWorker(ComfyUIWorker):
    """A worker on a machine that may have other versions or weights than the one where the run began."""

    def __init__(self, setup: Setup) -> None:
        if differs := difference(setup.identity, identity(setup.comfyui, setup.model)):
            raise UserError(
                f"a machine differs from the one where the run began ({differs}); install the same versions and "
                "weights there."
            )
        super().__init__(setup)


def _connected_ray(count: int, cpu: bool) -> Any:
    """Ray, connected to the cluster that this machine belongs to, or started on this machine alone."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports its usage to its makers by default
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UserError("--workers: more than one needs Ray; run pip install ray with ComfyUI's Python.") from error
    # Every machine has this checkout in the same place.
    environment = {"PYTHONPATH": os.pathsep.join(str(workspace.ROOT / name) for name in ("evaluation", "scripts"))}
    if cpu:
        import torch

        # Ray would set one thread. The number of threads changes the rounding of sums on a CPU.
        environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    options = {"logging_level": "ERROR", "log_to_driver": False, "runtime_env": {"env_vars": environment}}
    try:
        ray.init("auto", **options)
    except ConnectionError:
        cpus = max(count, os.cpu_count() or 1)
        ray.init("local", num_cpus=cpus, include_dashboard=False, object_store_memory=LOCAL_STORE, **options)
    return ray
