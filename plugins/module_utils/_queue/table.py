# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engines, one entry each, and how one is opened."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Callable, NamedTuple, Optional

from .._rollout.errors import BadInput
from .._rollout.ladder import WorkerTimes
from .engine import Capabilities, Engine


class StopOption(NamedTuple):
    """The option of a worker's command that says after how long it cuts off its tasks when it is told to stop."""

    names: tuple[str, ...]
    default: float
    """Seconds, where the option isn't given."""
    unit: float = 1.0
    """Of its number, in seconds."""

    def __str__(self) -> str:
        return f"{self.names[0]} ({'seconds' if self.unit == 1 else 'milliseconds'})"

    def seconds(self, command: Sequence[str]) -> float:
        """What a command says."""
        for place, word in enumerate(command):
            name, _equals, value = word.partition("=")
            given = value or next(iter(command[place + 1 :]), "")
            if name in self.names and given.isdecimal():
                return int(given) * self.unit
        return self.default


class WorkerDefaults(NamedTuple):
    """How a release's workers are started unless the pool says otherwise."""

    command: tuple[str, ...]
    """``{app}``, ``{worker}`` and ``{queues}`` are filled in on the host; ``{queue}`` repeats its item for each."""
    broker_variable: str
    """The environment variable in which the worker expects the broker's URL, which must never be an argument."""
    reporters: tuple[str, ...] = ()
    """The files, of those in ``roles/pool/files/reporters``, that tell of a worker from within. Each release gets them
    as ``{config}/backstep/<file>``. None when the engine's own workers tell enough."""
    extends: tuple[str, ...] = ()
    """Environment variables that have the worker load the reporter: the name, a separator of one character, and what is
    put before the value that the variable has already."""
    manifest: str = ""
    """The file, of those in ``roles/pool/files/manifests``, that asks the app of a worker with this command for the
    tasks that it can run; "" when nothing can be asked."""
    stop: Optional[StopOption] = None
    """``None`` when its workers wait for their tasks as long as these take."""
    again_seconds: Optional[float] = None
    """After which a task is given out again that a living worker has taken and not acknowledged; ``None``: never."""
    apart: bool = False
    """Whether a worker that listens to several queues can lose a task that one on a single queue can't."""


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


def _celery_rabbitmq() -> type[Engine]:
    from .engines.celery_rabbitmq import CeleryRabbitmqEngine

    return CeleryRabbitmqEngine


def _streams() -> type[Engine]:
    from .engines.streams import StreamsEngine

    return StreamsEngine


def _rabbitmq() -> type[Engine]:
    from .engines.rabbitmq import RabbitmqEngine

    return RabbitmqEngine


def _dramatiq() -> type[Engine]:
    from .engines.dramatiq import DramatiqEngine

    return DramatiqEngine


def _dramatiq_rabbitmq() -> type[Engine]:
    from .engines.dramatiq_rabbitmq import DramatiqRabbitmqEngine

    return DramatiqRabbitmqEngine


def _sidekiq() -> type[Engine]:
    from .engines.sidekiq import SidekiqEngine

    return SidekiqEngine


def _celery_command(reporter: str) -> tuple[str, ...]:
    """The app is named by the variable APP. The host in the name tells the processes of two containers apart."""
    return (
        "{app}/venv/bin/celery", "worker", "--hostname={worker}@%h", "--queues={queues}", f"--include={reporter}",
    )  # fmt: skip


def _dramatiq_command(reporter: str) -> tuple[str, ...]:
    """The reporter imports the app's modules, which the variable APP names, and hands on their broker.

    A week: how long tasks may take to end is the drain's to decide, and Dramatiq would cut them off after ten minutes.
    The queues are last: whatever came after them would be one.
    """
    return (
        "{app}/venv/bin/dramatiq", reporter, "--processes=1", "--worker-shutdown-timeout=604800000",
        "--queues", "{queues}",
    )  # fmt: skip


_CELERY_REPORTERS = ("backstep_celery_unknown.py", "backstep_gates.py")
_DRAMATIQ_REPORTERS = ("backstep_dramatiq_app.py", "backstep_dramatiq_parking.py", "backstep_gates.py")
ENGINES = {
    "bullmq": _Entry(
        "redis",
        _bullmq,
        # The app's own program; docs/engines.md says what it has to do, and how it has gates kept.
        WorkerDefaults(
            command=("node", "{app}/worker.js"),
            broker_variable="REDIS_URL",
            reporters=("backstep_bullmq.cjs",),
            extends=("NODE_PATH:{config}/backstep",),
        ),
    ),
    "celery": _Entry(
        "redis",
        _celery,
        WorkerDefaults(
            command=_celery_command("backstep_celery"),
            broker_variable="CELERY_BROKER_URL",
            reporters=("backstep_celery.py", "backstep_celery_parking.py", *_CELERY_REPORTERS),
            manifest="celery.py",
            extends=("PYTHONPATH:{config}/backstep",),
            again_seconds=3600,
        ),
    ),
    "celery_rabbitmq": _Entry(
        "pika",
        _celery_rabbitmq,
        WorkerDefaults(
            command=_celery_command("backstep_celery_rabbitmq"),
            broker_variable="CELERY_BROKER_URL",
            reporters=("backstep_celery_rabbitmq.py", "backstep_celery_rabbitmq_parking.py", *_CELERY_REPORTERS),
            manifest="celery.py",
            extends=("PYTHONPATH:{config}/backstep",),
            again_seconds=1800,
        ),
    ),
    "dramatiq": _Entry(
        "redis",
        _dramatiq,
        WorkerDefaults(
            command=_dramatiq_command("backstep_dramatiq:broker"),
            broker_variable="DRAMATIQ_BROKER_URL",
            reporters=("backstep_dramatiq.py", "backstep_dramatiq_redis_parking.py", *_DRAMATIQ_REPORTERS),
            manifest="dramatiq.py",
            extends=("PYTHONPATH:{config}/backstep",),
            stop=StopOption(("--worker-shutdown-timeout",), default=600, unit=0.001),
        ),
    ),
    "dramatiq_rabbitmq": _Entry(
        "pika",
        _dramatiq_rabbitmq,
        WorkerDefaults(
            command=_dramatiq_command("backstep_dramatiq_rabbitmq:broker"),
            broker_variable="DRAMATIQ_BROKER_URL",
            reporters=(
                *("backstep_dramatiq_rabbitmq.py", "backstep_dramatiq_rabbitmq_parking.py", "backstep_pika.py"),
                *_DRAMATIQ_REPORTERS,
            ),
            manifest="dramatiq.py",
            extends=("PYTHONPATH:{config}/backstep",),
            stop=StopOption(("--worker-shutdown-timeout",), default=600, unit=0.001),
            again_seconds=1800,
        ),
    ),
    "rabbitmq": _Entry(
        "pika",
        _rabbitmq,
        # As with BullMQ. RabbitMQ's `consumer_timeout` is half an hour.
        WorkerDefaults(
            command=("{app}/venv/bin/python", "{app}/worker.py"),
            broker_variable="AMQP_URL",
            reporters=("backstep_gates.py", "backstep_pika.py", "backstep_rabbitmq.py"),
            extends=("PYTHONPATH:{config}/backstep",),
            again_seconds=1800,
        ),
    ),
    "rq": _Entry(
        "redis",
        _rq,
        WorkerDefaults(
            # A handler of errors is what RQ imports, whatever the worker's class is. This one handles none.
            command=(
                *("{app}/venv/bin/rq", "worker", "--name", "{worker}"),
                *("--exception-handler=backstep_rq_unknown.hand_on", "{queues}"),
            ),
            broker_variable="RQ_REDIS_URL",
            reporters=("backstep_gates.py", "backstep_rq_unknown.py"),
            manifest="rq.py",
            extends=("PYTHONPATH:{config}/backstep",),
            apart=True,
        ),
    ),
    "sidekiq": _Entry(
        "redis",
        _sidekiq,
        # A week: how long tasks may take to end is the drain's to decide, and Sidekiq would begin them anew after 25 s.
        WorkerDefaults(
            command=("bundle", "exec", "sidekiq", "--timeout=604800", "--queue={queue}"),
            broker_variable="REDIS_URL",
            reporters=("backstep_sidekiq.rb", "backstep_sidekiq_unknown.rb"),
            extends=("RUBYOPT -r{config}/backstep/backstep_sidekiq.rb",),
            stop=StopOption(("--timeout", "-t"), default=25),
        ),
    ),
    "streams": _Entry(
        "redis",
        _streams,
        # As with BullMQ.
        WorkerDefaults(
            command=("{app}/venv/bin/python", "{app}/worker.py"),
            broker_variable="REDIS_URL",
            reporters=("backstep_gates.py", "backstep_streams.py"),
            extends=("PYTHONPATH:{config}/backstep",),
        ),
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


def _require_its_broker(name: str, url: str) -> None:
    """Refuse a URL of the other broker, of those libraries that run on both."""
    suffix = "_rabbitmq"
    is_rabbit = url.lower().startswith(("amqp://", "amqps://"))
    other = name[: -len(suffix)] if name.endswith(suffix) else f"{name}{suffix}"
    if other in ENGINES and is_rabbit == other.endswith(suffix):
        raise BadInput(
            f"The broker URL is one of {'RabbitMQ' if is_rabbit else 'Redis'}, and '{name}' isn't the engine for that.",
            left="Nothing was changed.",
            next_step=f"Set pool_engine (engine) to {other}.",
        )


def worker_defaults(name: str) -> WorkerDefaults:
    """How an engine's workers are started by default; needs no client library.

    :raises BadInput: the engine is unknown.
    """
    return _entry(name).worker


def worker_times(name: str, command: Sequence[str], visibility_seconds: float) -> WorkerTimes:
    """When an engine's workers end a task by themselves; needs no client library.

    :param command: the pool's own, or nothing for the engine's default.
    :param visibility_seconds: what the app sets in place of the engine's own, or 0.
    :raises BadInput: the engine is unknown.
    """
    defaults = _entry(name).worker
    stop = defaults.stop
    again = (visibility_seconds or defaults.again_seconds) if defaults.again_seconds else None
    if stop is None:
        return WorkerTimes(again=again)
    return WorkerTimes(stop.seconds(command or defaults.command), str(stop), again)


def capabilities(name: str) -> Capabilities:
    """What an engine's mechanisms are like; needs no client library and no broker.

    :raises BadInput: the engine is unknown.
    """
    return _entry(name).load().capabilities


def rights(name: str) -> str:
    """What Backstep's own user of an engine's broker needs, as the broker's administrator writes it.

    :raises BadInput: the engine is unknown.
    """
    return _entry(name).load().rights


def open_engine(name: str, url: str, timeout: float) -> Engine:
    """Connect to a pool's broker; close it again, or use it as a context manager.

    :param timeout: seconds that any single answer may take.
    :raises BadInput: the engine is unknown, its client library is missing, or the URL can't be used.
    """
    entry = _entry(name)
    _require_its_broker(name, url)
    try:
        importlib.import_module(entry.package)
    except ImportError as error:
        raise BadInput(
            f"Python package '{entry.package}' is needed to talk to the broker; {sys.executable} has none: {error}.",
            left="Nothing was changed.",
            next_step=f"{sys.executable} -m pip install {entry.package}",
        ) from error
    return entry.load()(url, timeout)
