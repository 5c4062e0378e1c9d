# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tells Backstep what a Dramatiq worker does, as Dramatiq itself knows its processes by random ids only.

``dramatiq backstep_dramatiq:broker --queues mail`` loads it in place of the app. It imports the modules that the
variable APP names, the first of which has the broker: ``APP="mail.broker"``, ``"mail.app:redis_broker mail.tasks"``.
Without APP it is loaded as a further module beside the app's, and watches the global broker.

Each worker process writes, in the same Redis, under keys that run out by themselves:

- ``backstep:dramatiq:processes``: sorted set of broker ids, by the time of their last beat.
- ``backstep:dramatiq:process:<broker id>``: hash with the worker's name (from BACKSTEP_WORKER), queues, threads, birth,
  last beat, ``gates`` (``fresh`` when it asks for a task's gate whenever it takes one), and how many tasks it has
  finished and failed: canaries and what it put off (``Retry``, a rate limit) are not counted, each attempt that fails
  is. Several processes may have one worker's name.
- ``backstep:dramatiq:executing:<broker id>``: hash from the Redis id of a message to the time at which its execution
  began, its message id and its actor.
- ``backstep:dramatiq:canary:<id>``: how a canary that Backstep has sent has ended, and where.

A message is noted before its actor is called, and until it has been acknowledged. While Redis doesn't answer nothing is
noted; the next beat makes up for it. No task fails, waits long or is kept because of what is noted: what goes wrong
there is logged once and left out. Without BACKSTEP_WORKER nothing is written. Python 3.9, dramatiq and redis.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from typing import Any

import redis
from backstep_dramatiq_app import CANARY_IDS, Watcher, declare_canary, load_app, queues_of
from backstep_dramatiq_parking import Parking, stand_before
from backstep_dramatiq_redis_parking import RedisParking
from redis.backoff import NoBackoff
from redis.retry import Retry as ConnectionRetry

_NAMESPACE = "dramatiq"
_BEAT_SECONDS = 2.0
_KEPT_SECONDS = 86400
_ANSWER_SECONDS = 1.0
# For so long nothing is written after Redis gave no answer, unless a beat gets through.
_SILENT_SECONDS = 10.0
# A process without a task asks for one about once a second, and one that has just had one a hundred times as often. So
# that a new one is soon proven by a canary of its own, it asks that often (milliseconds) until it has had a task, or
# for so long (seconds).
_EAGER_PACE = 50
_EAGER_SECONDS = 60.0
_UNSENT_AT_MOST = 100

_log = logging.getLogger(__name__)

_KEYS = """
local id, kept = ARGV[1], ARGV[2]
local process, executing = 'backstep:dramatiq:process:' .. id, 'backstep:dramatiq:executing:' .. id
local function now()
  local time = redis.call('TIME')
  return time[1] .. '.' .. string.format('%06d', time[2])
end
local function raise(field, count)
  if tonumber(count) > tonumber(redis.call('HGET', process, field) or 0) then
    redis.call('HSET', process, field, count)
  end
end
"""

# ARGV: broker id, seconds to keep, finished, failed, then fields and values -> Redis ids of what is noted as executing.
_BEAT = (
    _KEYS
    + """
local beat, index = now(), 'backstep:dramatiq:processes'
redis.call('HSET', process, 'beat', beat, unpack(ARGV, 5))
redis.call('HSETNX', process, 'birth', beat)
raise('finished', ARGV[3]); raise('failed', ARGV[4])
redis.call('ZADD', index, beat, id)
redis.call('ZREMRANGEBYSCORE', index, '-inf', tonumber(beat) - kept)
redis.call('EXPIRE', index, kept); redis.call('EXPIRE', process, kept); redis.call('EXPIRE', executing, kept)
return redis.call('HKEYS', executing)
"""
)

# ARGV: broker id, seconds to keep, worker, then for each message: Redis id, what it is, canary id or "".
_BEGIN = (
    _KEYS
    + """
for i = 4, #ARGV, 3 do
  redis.call('HSETNX', executing, ARGV[i], now() .. ' ' .. ARGV[i + 1])
  local canary = 'backstep:dramatiq:canary:' .. ARGV[i + 2]
  if ARGV[i + 2] ~= '' and redis.call('HGET', canary, 'state') == 'waiting' then
    redis.call('HSET', canary, 'state', 'executing', 'worker', ARGV[3])
  end
end
redis.call('EXPIRE', executing, kept)
"""
)

# ARGV: broker id, seconds to keep, worker, finished, failed, how it ended, canary id or "", then Redis ids.
_END = (
    _KEYS
    + """
if #ARGV > 7 then redis.call('HDEL', executing, unpack(ARGV, 8)) end
if redis.call('EXISTS', process) == 0 then return end
raise('finished', ARGV[4]); raise('failed', ARGV[5])
local canary = 'backstep:dramatiq:canary:' .. ARGV[7]
if ARGV[7] ~= '' and redis.call('EXISTS', canary) == 1 then
  redis.call('HSET', canary, 'state', ARGV[6], 'worker', ARGV[3])
end
"""
)

# ARGV: broker id, seconds to keep, then queues. Who still holds messages stays known, so that they can be given back.
_LEAVE = (
    _KEYS
    + """
local held = 0
for i = 3, #ARGV do
  local acks = 'dramatiq:__acks__.' .. id .. '.' .. ARGV[i]
  held = held + redis.call('SCARD', acks) + redis.call('SCARD', acks .. '.DQ')
end
if held > 0 then
  redis.call('HSET', process, 'ended', now())
else
  redis.call('DEL', process, executing)
  redis.call('ZREM', 'backstep:dramatiq:processes', id)
end
"""
)


def _client(broker: Any) -> Any:
    """A client to the broker's Redis that doesn't wait long."""
    theirs = broker.client
    pool = theirs.connection_pool
    if type(pool) not in (redis.ConnectionPool, redis.BlockingConnectionPool):
        return theirs  # one with a master to be found, for example
    settings = {
        **pool.connection_kwargs,
        "socket_timeout": _ANSWER_SECONDS,
        "socket_connect_timeout": _ANSWER_SECONDS,
        "retry": ConnectionRetry(NoBackoff(), 1),
    }
    return redis.Redis(connection_pool=redis.ConnectionPool(connection_class=pool.connection_class, **settings))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


class Notes:
    """What one process has to tell, and the way to Redis. Nothing here raises."""

    def __init__(self, client: Any, broker_id: str, worker: str) -> None:
        self._id = broker_id
        self._worker = worker
        scripts = {"beat": _BEAT, "begin": _BEGIN, "end": _END, "leave": _LEAVE}
        self._scripts = {name: client.register_script(script) for name, script in scripts.items()}
        self._lock = threading.Lock()
        self._executing: dict[str, list[str]] = {}
        """From Redis ids to what these messages are and, of a canary, its id."""
        self._counts = {"finished": 0, "failed": 0}
        self._unsent: list[list[str]] = []
        """Ends of canaries."""
        self._silent_until = 0.0
        self._complained = False

    def begin(self, message: Any) -> None:
        """Note that a message begins to be executed."""
        known_as = str(message.message_id)
        canary = known_as if known_as.startswith(CANARY_IDS) else ""
        redis_id = str(message.options["redis_message_id"])
        facts = [json.dumps([known_as, str(message.actor_name)]), canary]
        with self._lock:
            self._executing[redis_id] = facts
        self._tell("begin", self._worker, redis_id, *facts)

    def end(self, message: Any, outcome: str) -> None:
        """Note that a message has been acknowledged.

        :param outcome: ``finished``, ``failed``, or "" where it is neither.
        """
        known_as = str(message.message_id)
        canary = known_as if known_as.startswith(CANARY_IDS) and outcome else ""
        redis_id = str(message.options["redis_message_id"])
        with self._lock:
            self._executing.pop(redis_id, None)
            if outcome and not canary:
                self._counts[outcome] += 1
            finished, failed = self._counts["finished"], self._counts["failed"]
        told = self._tell("end", self._worker, finished, failed, outcome, canary, redis_id)
        if canary and not told and len(self._unsent) < _UNSENT_AT_MOST:
            self._unsent.append([outcome, canary])

    def beat(self, fields: dict[str, Any]) -> None:
        """Say that the process lives, and make up for what could not be written."""
        with self._lock:
            counts = [self._counts["finished"], self._counts["failed"]]
        flat = [part for pair in fields.items() for part in pair]
        noted: list[Any] = []
        if not self._tell("beat", *counts, *flat, anyway=True, answer=noted):
            return
        with self._lock:
            executing = dict(self._executing)
        there = {_text(redis_id) for redis_id in noted}
        stale = there - executing.keys()
        unnoted = [[redis_id, *facts] for redis_id, facts in executing.items() if redis_id not in there]
        if stale:
            self._tell("end", self._worker, *counts, "", "", *stale)
        if unnoted:
            self._tell("begin", self._worker, *[part for facts in unnoted for part in facts])
        while self._unsent and self._tell("end", self._worker, *counts, *self._unsent[0]):
            self._unsent.pop(0)

    def leave(self, queues: list[str]) -> None:
        """Say that the process is about to end."""
        self._tell("leave", *queues, anyway=True)

    def _tell(self, name: str, *arguments: Any, anyway: bool = False, answer: list[Any] | None = None) -> bool:
        """Whether Redis has taken a note; while it is silent, only ``anyway``."""
        if not anyway and time.monotonic() < self._silent_until:
            return False
        try:
            said = self._scripts[name](args=[self._id, _KEPT_SECONDS, *arguments])
        except Exception as error:  # noqa: BLE001  # whatever it is, it is no task's affair
            self._silent_until = time.monotonic() + _SILENT_SECONDS
            if not self._complained:
                self._complained = True
                # Only its kind: the text could hold the broker's password.
                _log.warning("Backstep isn't told what this worker does until Redis answers: %s", type(error).__name__)
            return False
        self._silent_until, self._complained = 0.0, False
        if answer is not None:
            answer.extend(said)
        return True


class Reporter(Watcher):
    """Listens to the broker of one worker process."""

    def __init__(self, worker: str, parking: Parking) -> None:
        super().__init__()
        self._name = worker
        self._parking = parking
        self._notes: Notes | None = None
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._up = False
        self._eager_until = 0.0

    def before_worker_boot(self, broker: Any, worker: Any) -> None:
        """Be known before the first message is taken."""
        declare_canary(broker)
        self._notes = Notes(_client(broker), broker.broker_id, self._name)
        self._notes.beat(self._fields(broker, worker))

    def after_worker_boot(self, broker: Any, worker: Any) -> None:
        self._up, self._eager_until = True, time.monotonic() + _EAGER_SECONDS
        self._thread = threading.Thread(target=self._beat, args=(broker, worker), name="backstep", daemon=True)
        self._thread.start()

    def after_worker_shutdown(self, broker: Any, worker: Any) -> None:
        self._stopped.set()
        if self._thread:
            self._thread.join(3 * _ANSWER_SECONDS)
        if self._notes:
            self._notes.leave(queues_of(broker, worker))

    def key(self, message: Any) -> Any:
        return message.options.get("redis_message_id") if self._notes else None

    def begun(self, message: Any) -> None:
        self._eager_until = 0.0
        if self._notes:
            self._notes.begin(message)

    def ended(self, message: Any, outcome: str) -> None:
        if self._notes:
            self._notes.end(message, outcome)

    def _beat(self, broker: Any, worker: Any) -> None:
        beats_at, pace = 0.0, worker.worker_timeout
        while not self._stopped.is_set():
            if self._notes and time.monotonic() >= beats_at:
                self._notes.beat(self._fields(broker, worker))
                beats_at = time.monotonic() + _BEAT_SECONDS
            eager = time.monotonic() < self._eager_until
            if eager or pace != worker.worker_timeout:
                pace = min(_EAGER_PACE, worker.worker_timeout) if eager else worker.worker_timeout
                _set_pace(worker, pace)
            self._stopped.wait(_BEAT_SECONDS / 10 if eager else _BEAT_SECONDS)

    def _fields(self, broker: Any, worker: Any) -> dict[str, Any]:
        pid = self._name.rpartition("/")[2]
        return {
            "worker": self._name,
            "pid": pid if pid.isdecimal() else os.getppid(),
            "hostname": socket.gethostname(),
            "queues": ",".join(queues_of(broker, worker)),
            "threads": worker.worker_threads,
            "timeout": broker.heartbeat_timeout,
            "up": int(self._up),
            "gates": "fresh" if self._parking.keeps_gates else "",
        }


def _set_pace(worker: Any, milliseconds: int) -> None:
    """Have a process ask for tasks at least this often."""
    for thread in list(worker.consumers.values()):
        if hasattr(thread.consumer, "timeout"):
            thread.consumer.timeout = milliseconds


def watch(broker: Any, worker: str) -> None:
    """Have a broker's worker be reported under a name."""
    if getattr(broker, "namespace", None) != _NAMESPACE or not hasattr(broker, "broker_id"):
        _log.warning("Backstep can't watch %r: it knows Dramatiq on Redis with the namespace 'dramatiq'.", broker)
        return
    parking = RedisParking(worker)
    stand_before(broker, parking)
    broker.add_middleware(Reporter(worker, parking))


broker = load_app(os.environ.get("APP", ""))
if os.environ.get("BACKSTEP_WORKER"):
    watch(broker, os.environ["BACKSTEP_WORKER"])
