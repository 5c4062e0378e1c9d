# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engines, one entry each, and how one is opened."""

from __future__ import annotations

import importlib
import sys
from typing import Callable, NamedTuple

from .._rollout.errors import BadInput
from .engine import Capabilities, Engine


class WorkerDefaults(NamedTuple):
    """How a release's workers are started unless the pool says otherwise."""

    command: tuple[str, ...]
    """``{app}``, ``{worker}`` and ``{queues}`` are filled in on the host; ``{queue}`` repeats its item for each."""
    broker_variable: str
    """The environment variable in which the worker expects the broker's URL, which must never be an argument."""
    reporter: str = ""
    """The file, of those in ``roles/pool/files/reporters``, that tells of a worker from within. Each release gets it as
    ``{config}/backstep/<file>``. Empty when the engine's own workers tell enough."""
    extends: tuple[str, ...] = ()
    """Environment variables that have the worker load the reporter: the name, a separator of one character, and what is
    put before the value that the variable has already."""


class _Entry(NamedTuple):
    package: str
    """The Python package of its client library."""
    load: Callable[[], type[Engine]]
    worker: WorkerDefaults


# Written-out imports: Ansible ships to a host only what it finds imported by name, and each engine's client library
# is there only where that engine is used.
def _rq() -> type[Engine]:
    from .engines.rq import RqEngine

    return RqEngine


def _bullmq() -> type[Engine]:
    from .engines.bullmq import BullmqEngine

    return BullmqEngine


def _celery() -> type[Engine]:
    from .engines.celery import CeleryEngine

    return CeleryEngine


def _streams() -> type[Engine]:
    from .engines.streams import StreamsEngine

    return StreamsEngine


def _dramatiq() -> type[Engine]:
    from .engines.dramatiq import DramatiqEngine

    return DramatiqEngine


def _sidekiq() -> type[Engine]:
    from .engines.sidekiq import SidekiqEngine

    return SidekiqEngine


ENGINES = {
    "bullmq": _Entry(
        "redis",
        _bullmq,
        # The app's own program; docs/engines.md says what it has to do.
        WorkerDefaults(("node", "{app}/worker.js"), "REDIS_URL"),
    ),
    "celery": _Entry(
        "redis",
        _celery,
        # The app is named by the variable APP. The host in the name tells the processes of two containers apart.
        WorkerDefaults(
            command=(
                "{app}/venv/bin/celery", "worker", "--hostname={worker}@%h", "--queues={queues}",
                "--include=backstep_celery",
            ),
            broker_variable="CELERY_BROKER_URL",
            reporter="backstep_celery.py",
            extends=("PYTHONPATH:{config}/backstep",),
        ),
    ),
    "dramatiq": _Entry(
        "redis",
        _dramatiq,
        # The reporter imports the app's modules, which the variable APP names, and hands on their broker. A week: how
        # long tasks may take to end is the drain's to decide, and Dramatiq would cut them off after ten minutes. The
        # queues are last: whatever came after them would be one.
        WorkerDefaults(
            command=(
                "{app}/venv/bin/dramatiq", "backstep_dramatiq:broker", "--processes=1",
                "--worker-shutdown-timeout=604800000", "--queues", "{queues}",
            ),
            broker_variable="DRAMATIQ_BROKER_URL",
            reporter="backstep_dramatiq.py",
            extends=("PYTHONPATH:{config}/backstep",),
        ),
    ),
    "rq": _Entry(
        "redis",
        _rq,
        WorkerDefaults(("{app}/venv/bin/rq", "worker", "--name", "{worker}", "{queues}"), "RQ_REDIS_URL"),
    ),
    "sidekiq": _Entry(
        "redis",
        _sidekiq,
        # A week: how long tasks may take to end is the drain's to decide, and Sidekiq would begin them anew after 25 s.
        WorkerDefaults(
            command=("bundle", "exec", "sidekiq", "--timeout=604800", "--queue={queue}"),
            broker_variable="REDIS_URL",
            reporter="backstep_sidekiq.rb",
            extends=("RUBYOPT -r{config}/backstep/backstep_sidekiq.rb",),
        ),
    ),
    "streams": _Entry(
        "redis",
        _streams,
        # The app's own program; docs/engines.md says what it has to do.
        WorkerDefaults(("{app}/venv/bin/python", "{app}/worker.py"), "REDIS_URL"),
    ),
}


def _entry(name: str) -> _Entry:
    entry = ENGINES.get(name)
    if entry is None:
        raise BadInput(
            f"'{name}' is not an engine that Backstep knows. It knows: {', '.join(sorted(ENGINES))}.",
            left="Nothing was changed.",
            next_step="Set pool_engine (engine) to one of these.",
        )
    return entry


def worker_defaults(name: str) -> WorkerDefaults:
    """How an engine's workers are started by default; needs no client library.

    :raises BadInput: the engine is unknown.
    """
    return _entry(name).worker


def capabilities(name: str) -> Capabilities:
    """What an engine's mechanisms are like; needs no client library and no broker.

    :raises BadInput: the engine is unknown.
    """
    return _entry(name).load().capabilities


def open_engine(name: str, url: str, timeout: float) -> Engine:
    """Connect to a pool's broker; close it again, or use it as a context manager.

    :param timeout: seconds that any single answer may take.
    :raises BadInput: the engine is unknown, its client library is missing, or the URL can't be used.
    """
    entry = _entry(name)
    try:
        importlib.import_module(entry.package)
    except ImportError as error:
        raise BadInput(
            f"Python package '{entry.package}' is needed to talk to the broker; {sys.executable} has none: {error}.",
            left="Nothing was changed.",
            next_step=f"{sys.executable} -m pip install {entry.package}",
        ) from error
    return entry.load()(url, timeout)
