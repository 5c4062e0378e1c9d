# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Has an RQ worker park tasks whose functions its release doesn't have: RQ tries them, as often as they may, and fails.

After a release is taken back, whoever is still ahead of it goes on enqueueing such tasks. They are parked as
``task_move`` parks them, before RQ counts them as begun, in the same step in which they cease to be the worker's, and
are put back like all others. Loaded by ``--exception-handler=backstep_rq_unknown.hand_on``, which is a way to have any
``rq worker`` import a file, whatever its class is. The app isn't changed; in ``pool_env``, ``PARK_UNKNOWN_TASKS: "no"``
leaves RQ its own way.

A function is looked for where RQ looks for it, in the process that is to execute the task. What is there and can't be
loaded, or fails, is no unknown one: the release is bad then, and that has to be seen.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import pickletools
from typing import Any

from redis.exceptions import RedisError, ResponseError

try:
    from rq.exceptions import DeserializationError
    from rq.executions import Execution
    from rq.job import Job
    from rq.timeouts import JobTimeoutException
    from rq.utils import import_attribute
    from rq.worker import Worker
except ImportError:
    Worker = None

_CANARY = "backstep-canary-"
_WHY = "the worker's release doesn't know it"
# What of a job says which function it is. A class of the app's own may find functions in another way.
_FINDING = ("func", "func_name", "instance", "perform", "_execute")
# ARGV: queue, id, sorted set of what is executed, id of the execution, owner, reason -> 1 when it is parked. Each comes
# behind those that were parked before. What may be refused is done first, and what only RQ's own keys need at the end.
_PARK = """
local queue, id, claim = ARGV[1], ARGV[2], ARGV[2] .. ':' .. ARGV[4]
local parked, job, taken = 'backstep:rq:parked:' .. queue, 'rq:job:' .. id, 'rq:queue:' .. queue .. ':intermediate'
if not redis.call('ZSCORE', ARGV[3], claim) then
  -- The client asks again when an answer was lost.
  return redis.call('ZSCORE', parked, id) and 1 or 0
end
if redis.call('HGET', job, 'status') ~= 'queued' then return 0 end
local left = redis.call('PTTL', job)
local order = redis.call('HINCRBY', parked .. ':order', '', 1)
redis.call('HSET', parked .. ':from', id, cjson.encode({state = 'waiting', score = '', left = left,
  owner = ARGV[5], reason = ARGV[6], at = redis.call('TIME')[1]}))
redis.call('ZADD', parked, order, id)
for _, key in ipairs({job, job .. ':dependents', 'rq:job::' .. id .. ':dependencies'}) do
  redis.call('PERSIST', key)
end
redis.call('ZREM', ARGV[3], claim)
redis.call('ZREM', 'rq:executions:' .. id, ARGV[4])
redis.call('DEL', 'rq:execution:' .. claim, taken .. ':first_seen:' .. id)
redis.call('LREM', taken, 1, id)
return 1
"""
_log = logging.getLogger("rq.worker")


def hand_on(_job: Any, *_error: Any) -> None:
    """What RQ imports this file for: a handler of errors that leaves them all to the others."""


def _unknown(worker: Any, job: Any) -> str:
    """The task's name, where the release has no such function; else ""."""
    if any(getattr(type(job), part, None) is not getattr(Job, part) for part in _FINDING):
        return ""
    try:
        seconds = job.timeout or worker.queue_class.DEFAULT_TIMEOUT
        with worker.death_penalty_class(seconds, JobTimeoutException, job_id=job.id):
            name, instance = _called(job)
            missing = not hasattr(instance, name) if instance else _is_missing(name)
            return name if missing else ""
    except Exception:  # noqa: BLE001  # whatever it is, RQ meets it as well, and tells of it
        return ""


def _called(job: Any) -> tuple[str, Any]:
    """The name of a function, or of a method and whose it is."""
    try:
        return job.func_name, job.instance
    except DeserializationError:
        # Its arguments may be of classes that the release hasn't, either. A pickle begins with the name.
        texts = (argument for _code, argument, _place in pickletools.genops(job.data) if isinstance(argument, str))
        name = next(texts)
        if "." not in name:
            raise  # a method: of which object, only the rest would tell
        return name, None


def _is_missing(name: str) -> bool:
    """Whether there is no such function.

    :raises Exception: what has to be there for it can't be loaded.
    """
    modules = name.split(".")[:-1]
    for end in range(1, len(modules) + 1):
        module = ".".join(modules[:end])
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            break  # a class, or nothing at all
    try:
        import_attribute(name)
    except (ImportError, AttributeError, ValueError):
        return True
    return False


def _park(worker: Any, job: Any, queue: Any, name: str) -> bool:
    """Whether it is no longer this worker's to execute."""
    if not isinstance(worker.execution, Execution):  # what a task is taken by, since RQ 2
        return False
    try:
        taken = (job.started_job_registry.key, worker.execution.id)
        if not worker.connection.eval(_PARK, 0, queue.name, job.id, *taken, worker.name, _WHY):
            return False
    except RedisError as error:
        # Only its kind: the text could hold the broker's password.
        _log.warning("Task %s, which this release doesn't know, can't be parked: %s", job.id, type(error).__name__)
        # What was refused fails as it always did. Else nobody knows: it is parked, or comes back as what a killed
        # worker had.
        return not isinstance(error, ResponseError)
    worker.execution = None
    _log.warning("Task %s is parked: this release knows no %s.", job.id, name)
    return True


def _park_unknown_tasks() -> None:
    kind = next((kind for kind in getattr(Worker, "__mro__", ()) if "perform_job" in vars(kind)), None)
    if kind is None:
        _log.warning("Tasks that this release doesn't know will fail, as they can't be parked with this version of RQ.")
        return
    perform = kind.perform_job

    @functools.wraps(perform)
    def perform_job(worker: Any, job: Any, queue: Any) -> Any:
        name = "" if str(job.id).startswith(_CANARY) else _unknown(worker, job)
        if name and _park(worker, job, queue, name):
            return True
        return perform(worker, job, queue)

    kind.perform_job = perform_job


if os.environ.get("PARK_UNKNOWN_TASKS", "yes").lower() not in ("no", "false", "0"):
    _park_unknown_tasks()
