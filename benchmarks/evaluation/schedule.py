"""Who runs which record: this process, or Ray's actors."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import workspace
from console import UserError

from .record import Made, Task
from .worker import RemoteWorker, Setup, Worker

TRIES = 3  # workers that a record may take down with it
LOCAL_STORE = 1 << 29  # bytes that Ray keeps for what is on its way, on this machine alone
CHOICE = re.compile(r"ray(:(?P<joined>[1-9]\d*))?|(?P<local>[1-9]\d*)")


class Workers(Protocol):
    """What runs work."""

    count: int

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Made]]:
        """Takes each task when there is somebody to do it; answers in the order in which they end."""


class ThisProcess:
    """One worker, without Ray."""

    count = 1

    def __init__(self, setup: Setup) -> None:
        self._worker = Worker(setup)

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Made]]:
        """As `Workers.run`."""
        for task in tasks:
            yield task, self._worker.run(task.work)


class RayActors:
    """Workers as Ray's actors, each with a GPU of its own where there are any.

    Ray places them on the cluster's machines, starts a lost one anew, and gives it its record again.
    """

    def __init__(self, setup: Setup, count: int | None, join: bool) -> None:
        """count: None: as many as the cluster has GPUs. join: a running cluster, where there is one."""
        ray = _import_ray()
        _connect(ray, count, join, _threads() if setup.cpu else {})
        self._ray = ray
        gpus = int(ray.cluster_resources().get("GPU", 0))
        self.count = count or max(gpus, 1)
        needs = {"num_cpus": 1} if setup.cpu else {"num_gpus": 1, "num_cpus": 1}
        room = ray.cluster_resources().get("CPU" if setup.cpu else "GPU", 0)
        if self.count > room:
            what = "CPUs" if setup.cpu else "GPUs"
            raise UserError(f"--workers: {self.count} need as many {what} and this cluster has {room:.0f}")
        remote = ray.remote(max_restarts=-1, max_task_retries=TRIES - 1, **needs)(RemoteWorker)
        self._actors = [remote.remote(setup) for _ in range(self.count)]
        self._wait(lambda: ray.get([actor.ready.remote() for actor in self._actors]))

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Made]]:
        """As `Workers.run`."""
        idle, self._actors = self._actors, []
        busy: dict[Any, tuple[Any, Task]] = {}
        waiting = iter(tasks)
        while True:
            while not idle:
                yield self._next(busy, idle)
            # Taken only now, so that no more than what is worked on is in memory.
            task = next(waiting, None)
            if task is None:
                break
            actor = idle.pop()
            busy[actor.run.remote(task.work)] = actor, task
            del actor
        # A worker without work is let go, so that one whose machine was lost finds its place.
        idle.clear()
        while busy:
            yield self._next(busy, [])

    def _next(self, busy: dict[Any, tuple[Any, Task]], idle: list[Any]) -> tuple[Task, Made]:
        (done,), _ = self._ray.wait(list(busy), num_returns=1)
        actor, task = busy.pop(done)
        idle.append(actor)
        try:
            return task, self._wait(lambda: self._ray.get(done))
        except self._ray.exceptions.ActorUnavailableError:
            return task, Made(error=f"{TRIES} workers were lost while they worked on it")

    def _wait(self, get: Callable[[], Any]) -> Any:
        try:
            return get()
        except self._ray.exceptions.ActorDiedError as error:
            cause = getattr(error, "cause", None) or error
            raise UserError(f"a worker does not start: {str(cause).strip().splitlines()[-1]}") from error


def _import_ray() -> Any:
    # Ray tells its makers how it is used, unless it is told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UserError(
            "--workers: more than one needs Ray; install it with ComfyUI's Python: pip install ray"
        ) from error
    return ray


def _threads() -> dict[str, str]:
    """For each worker as many as it has without Ray, which would give it one: they change how a CPU rounds sums."""
    import torch

    return {"OMP_NUM_THREADS": str(torch.get_num_threads())}


def _connect(ray: Any, count: int | None, join: bool, environment: dict[str, str]) -> None:
    # Every machine has this checkout in the same place.
    paths = os.pathsep.join(str(workspace.ROOT / name) for name in ("benchmarks", "scripts"))
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    options["runtime_env"] = {"env_vars": {"PYTHONPATH": paths, **environment}}
    if join:
        try:
            ray.init("auto", **options)
        except ConnectionError:
            pass
        else:
            return
    local = {"include_dashboard": False, "object_store_memory": LOCAL_STORE}
    ray.init("local", num_cpus=max(count or 1, os.cpu_count() or 1), **local, **options)


@dataclass(frozen=True)
class Choice:
    """What --workers says.

    count  None: as many as there are GPUs
    ray    Ray runs them; without it there is one, in this process
    join   a running cluster, where there is one
    """

    count: int | None
    ray: bool
    join: bool


def choice(text: str) -> Choice:
    """`1`, `4`, `ray`, `ray:4`. Raises ValueError."""
    found = CHOICE.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is neither a number, nor ray, nor ray:NUMBER")
    number = found["joined"] or found["local"]
    count = int(number) if number else None
    join = found["local"] is None
    return Choice(count, join or count != 1, join)


def start(setup: Setup, chosen: Choice) -> Workers:
    """Workers that are ready. Raises UserError."""
    return RayActors(setup, chosen.count, chosen.join) if chosen.ray else ThisProcess(setup)
