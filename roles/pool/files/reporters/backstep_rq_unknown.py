# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Has an RQ worker park what it isn't to execute: tasks that its release doesn't have, and those that a gate holds.

After a release is taken back, whoever is still ahead of it goes on enqueueing tasks whose functions it doesn't have, or
whose payloads it can't read: of another serializer, or with arguments of classes that it doesn't have either. RQ would
try them as often as they may, and fail. They are parked as ``task_move`` parks them, before RQ counts them as
begun, in the same step in which they cease to be the worker's, and are put back like all others. Loaded by
``--exception-handler=backstep_rq_unknown.hand_on``, which is a way to have any ``rq worker`` import a file, whatever
its class is. The app isn't changed; in ``pool_env``, ``PARK_UNKNOWN_TASKS: "no"`` and ``KEEP_GATES: "no"`` leave RQ its
own way.

A function is looked for where RQ looks for it, in the process that is to execute the task. What is there and can't be
loaded, or fails, is no unknown one: the release is bad then, and that has to be seen. What the book of gates says of a
task is asked there too, for each task anew.
"""

from __future__ import annotations

import functools
import importlib
import logging
import pickletools
from typing import Any

from backstep_gates import UNKNOWN, UNREADABLE, keeps_gates, owner, parks_unknown_tasks, why_held
from redis.exceptions import RedisError, ResponseError

try:
    from rq import worker_registration
    from rq.exceptions import DeserializationError
    from rq.executions import Execution
    from rq.job import Job
    from rq.timeouts import JobTimeoutException
    from rq.utils import import_attribute
    from rq.worker import Worker
except ImportError:
    Worker = None

_CANARY = "backstep-canary-"
_BOOK = "backstep:rq:book:gates"
# What of a job says which function it is. A class of the app's own may find functions in another way.
_FINDING = ("func", "func_name", "instance", "perform", "_execute")
# What the script says when the book no longer says of the task's name what it was told.
_CHANGED = 2
# ARGV: queue, id, sorted set of what is executed, id of the execution, owner, reason, and for a gate also the task's
# name and what the book has said of it -> 1 when it is parked. Each comes behind those that were parked before. Behind
# a gate that has opened since none is parked: what it held was put back already, and nobody would come for this one.
# What may be refused is done first, and what only RQ's own keys need at the end.
_PARK = """
local queue, id, claim = ARGV[1], ARGV[2], ARGV[2] .. ':' .. ARGV[4]
local parked, job, taken = 'backstep:rq:parked:' .. queue, 'rq:job:' .. id, 'rq:queue:' .. queue .. ':intermediate'
if not redis.call('ZSCORE', ARGV[3], claim) then
  -- The client asks again when an answer was lost.
  return redis.call('ZSCORE', parked, id) and 1 or 0
end
if redis.call('HGET', job, 'status') ~= 'queued' then return 0 end
if ARGV[7] and redis.call('HGET', 'backstep:rq:book:gates', ARGV[7]) ~= ARGV[8] then return 2 end
local left = redis.call('PTTL', job)
local order = redis.call('HINCRBY', parked .. ':order', '', 1)
redis.call('HSET', parked .. ':from', id, cjson.encode({state = 'waiting', score = '', left = left,
  owner = ARGV[5], reason = ARGV[6], at = redis.call('TIME')[1]}))
if ARGV[7] then redis.call('HSET', 'backstep:rq:gated:' .. ARGV[7], id, order) end
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


def _lack(worker: Any, job: Any) -> tuple[str, str]:
    """Why the release can't execute a task, and the name of what it lacks, if it can be told; twice "" where it can."""
    if any(getattr(type(job), part, None) is not getattr(Job, part) for part in _FINDING):
        return "", ""
    try:
        seconds = job.timeout or worker.queue_class.DEFAULT_TIMEOUT
        with worker.death_penalty_class(seconds, JobTimeoutException, job_id=job.id):
            return _looked_up(job)
    except Exception:  # noqa: BLE001  # whatever it is, RQ meets it as well, and tells of it
        return "", ""


def _looked_up(job: Any) -> tuple[str, str]:
    try:
        name, instance = job.func_name, job.instance
    except DeserializationError as error:
        if isinstance(error.__cause__, JobTimeoutException):
            raise
        # By another serializer, or with arguments of classes that the release hasn't. A method has no dot: of which
        # object it is, only the rest would tell.
        name = _readable_name(job)
        return (UNKNOWN, name) if "." in name and _is_missing(name) else (UNREADABLE, "")
    missing = not hasattr(instance, name) if instance else _is_missing(name)
    return (UNKNOWN, name) if missing else ("", "")


def _readable_name(job: Any) -> str:
    try:
        return _first_text(job.data)
    except ValueError:
        return ""


def _first_text(pickled: bytes) -> str:
    """A task's name: with it, a payload begins. Nothing is loaded.

    :raises ValueError: it is no pickle.
    """
    texts = (argument for _code, argument, _place in pickletools.genops(pickled) if isinstance(argument, str))
    return next(texts, "")


def _named(job: Any) -> str:
    """A task's name, as ``task_gate`` knows it."""
    try:
        try:
            return _first_text(job.data)
        except ValueError:
            return str(job.func_name)  # by another serializer than Python's pickle
    except Exception:  # noqa: BLE001  # whatever it is, RQ meets it as well, and tells of it
        return ""


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


def _park(worker: Any, job: Any, queue: Any, *why: Any) -> int:
    """What the script has said."""
    taken = (job.started_job_registry.key, worker.execution.id)
    answer: int = worker.connection.eval(_PARK, 0, queue.name, job.id, *taken, *why)
    if answer == 1:
        worker.execution = None
    return answer


def _is_left_as_unknown(worker: Any, job: Any, queue: Any) -> bool:
    """Whether it is no longer this worker's to execute, as its release doesn't know it or can't read it."""
    why, name = _lack(worker, job)
    if not why or not isinstance(worker.execution, Execution):  # what a task is taken by, since RQ 2
        return False
    try:
        if not _park(worker, job, queue, worker.name, why):
            return False
    except RedisError as error:
        # Only its kind: the text could hold the broker's password.
        _log.warning("Task %s, which this release can't execute, isn't parked: %s", job.id, type(error).__name__)
        # What was refused fails as it always did. Else nobody knows: it is parked, or comes back as what a killed
        # worker had.
        return not isinstance(error, ResponseError)
    _log.warning("Task %s is parked: this release %s.", job.id, f"knows no {name}" if name else "can't read it")
    return True


def _is_held(worker: Any, job: Any, queue: Any) -> bool:
    """Whether its gate keeps it from being executed: it is parked, or else comes back as what a killed worker had."""
    task = _named(job)
    try:
        line = worker.connection.hget(_BOOK, task)
        why = why_held(line, job.id)
        if not why:
            return False
        answer = _park(worker, job, queue, owner(task), why, task, line)
    except RedisError as error:
        _log.warning("Task %s isn't executed, as its gate can't be kept to: %s", job.id, type(error).__name__)
        return True
    if answer == _CHANGED:
        return _is_held(worker, job, queue)
    _log.info("Task %s is held by the gate of %s.", job.id, task)
    return True


def _tell_of_gates() -> None:
    """Have workers tell that they keep gates, in the step in which they register."""
    register = worker_registration.register

    @functools.wraps(register)
    def and_tell(worker: Any, pipeline: Any = None) -> None:
        register(worker, pipeline)
        if _can_keep_gates(worker):
            worker.backstep_gates = True
            (worker.connection if pipeline is None else pipeline).hset(worker.key, "backstep_gates", "fresh")

    worker_registration.register = and_tell


def _can_keep_gates(worker: Any) -> bool:
    if getattr(type(worker), "fork_work_horse", Worker.fork_work_horse) is not Worker.fork_work_horse:
        return False  # what executes its tasks is another program, which doesn't load this file
    try:
        worker.connection.hget(_BOOK, "")
    except ResponseError as error:
        _log.warning("This worker keeps no gates, as it may not read them: %s", type(error).__name__)
        return False
    return True


def _look_before_executing() -> None:
    kind = next((kind for kind in getattr(Worker, "__mro__", ()) if "perform_job" in vars(kind)), None)
    if kind is None:
        _log.warning("With this version of RQ no gates are kept, and tasks that this release doesn't know will fail.")
        return
    perform, parks_unknown = kind.perform_job, parks_unknown_tasks()

    @functools.wraps(perform)
    def perform_job(worker: Any, job: Any, queue: Any) -> Any:
        if not str(job.id).startswith(_CANARY):
            if parks_unknown and _is_left_as_unknown(worker, job, queue):
                return True
            if getattr(worker, "backstep_gates", False) and _is_held(worker, job, queue):
                return True
        return perform(worker, job, queue)

    kind.perform_job = perform_job
    if keeps_gates():
        _tell_of_gates()


if parks_unknown_tasks() or keeps_gates():
    _look_before_executing()
