# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Loaded by a Celery worker (``--include=backstep_celery``): tells what it executes, has finished and has failed.

Celery itself counts failures nowhere, and a worker that was told to stop answers no more questions. What is told lies
in the broker's Redis:

- ``backstep:celery:counts:<worker>``: a hash with ``finished`` and ``failed``. An attempt that is retried has failed.
  Canaries are not counted. ``gates`` is ``fresh`` in it of a worker that asks for a task's gate whenever it takes one.
- ``backstep:celery:executing:<worker>``: a hash of task ids, each with a JSON list of its queue, its name, and the time
  at which it was begun (epoch seconds, by the worker's clock).

Both run out a week after the worker's last word. That it lives is told by a connection of its main process, which has
the name ``backstep:celery:living:<worker>`` and ends with that process.

Telling never makes a task fail: when Redis doesn't answer within a second, nothing is told for a while. A worker that
was not started by Backstep (no ``BACKSTEP_WORKER``), or whose broker isn't Redis, tells nothing. Of a Redis under
Sentinel it asks who is the master as Celery does, with the app's own settings.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from typing import Any
from urllib.parse import unquote, urlsplit

from backstep_celery_parking import RedisWay
from backstep_celery_unknown import Way, park_tasks
from celery import current_app, signals

_NAME = os.environ.get("BACKSTEP_WORKER", "")
_URL = os.environ.get("CELERY_BROKER_URL", "")
_COUNTS = f"backstep:celery:counts:{_NAME}"
_EXECUTING = f"backstep:celery:executing:{_NAME}"
_LIVING = f"backstep:celery:living:{_NAME}"
_LOOK_SECONDS = 10.0
_KEPT_SECONDS = 7 * 86_400
_ANSWER_SECONDS = 1.0
# Short, as a fail-over takes a few seconds, and what is begun meanwhile is not told.
_REST_SECONDS = 5.0
_SENTINEL = "sentinel://"
_CANARY = "backstep-canary-"


class _Reporter:
    """One worker's. Each of its processes has a connection of its own."""

    def __init__(self, way: Way) -> None:
        self._way = way
        self._client: Any = None
        self._owner = 0
        self._rests_until = 0.0

    def on_ready(self, **_told: Any) -> None:
        """Say what this worker does of itself, and from now on that it lives."""
        self._introduce()
        threading.Thread(target=self._live, name="backstep", daemon=True).start()

    def _introduce(self) -> None:
        """Say by zeros that it counts, and whether it keeps gates."""
        gates = ("HSET", _COUNTS, "gates", "fresh") if self._way.keeps_gates else ("HDEL", _COUNTS, "gates")
        self._tell(*(("HSETNX", _COUNTS, field, 0) for field in ("finished", "failed")), gates)

    def on_begin(self, sender: Any = None, task_id: str = "", **_told: Any) -> None:
        """Say that a task is begun, before it is."""
        queue = (sender.request.delivery_info or {}).get("routing_key")
        self._tell(("HSET", _EXECUTING, task_id, json.dumps([queue, sender.name, time.time()])))

    def on_success(self, sender: Any = None, **_told: Any) -> None:
        """Count a finished task."""
        self._count("finished", sender.request.id)

    def on_failure(self, task_id: str = "", request: Any = None, **_told: Any) -> None:
        """Count a failed attempt."""
        self._count("failed", task_id or request.id)

    def on_end(self, task_id: str = "", **_told: Any) -> None:
        """Say that a task is no longer executing."""
        self._tell(("HDEL", _EXECUTING, task_id))

    def _live(self) -> None:
        """Keep the connection that tells that this process lives."""
        end, client = threading.Event(), None
        while True:
            try:
                client = client or self._new_connection(client_name=_LIVING, single_connection_client=True)
                client.ping()
            except Exception as error:  # noqa: BLE001  # the next one may come through
                self._complain(error)
                client = None
            end.wait(_LOOK_SECONDS)
            self._introduce()  # it may not have been heard, or have been silent for a week

    def _count(self, field: str, task_id: str) -> None:
        if not str(task_id).startswith(_CANARY):
            self._tell(("HINCRBY", _COUNTS, field, 1))

    def _tell(self, *commands: tuple[Any, ...]) -> None:
        if time.monotonic() < self._rests_until:
            return
        try:
            batch = self._connection().pipeline()
            for command in commands:
                batch.execute_command(*command)
            for key in {command[1] for command in commands}:
                batch.expire(key, _KEPT_SECONDS)
            batch.execute()
        except Exception as error:  # noqa: BLE001  # whatever it is, the task goes on
            self._rests_until = time.monotonic() + _REST_SECONDS
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        # Only its kind: the text could hold the broker's password.
        logging.getLogger(__name__).warning("Backstep is not told what this worker does: %s", type(error).__name__)

    def _connection(self) -> Any:
        # A connection that was opened before a fork would be shared with the other process.
        if self._client is None or self._owner != os.getpid():
            self._client, self._owner = self._new_connection(), os.getpid()
        return self._client

    def _new_connection(self, **options: Any) -> Any:
        import redis

        limits = {"socket_timeout": _ANSWER_SECONDS, "socket_connect_timeout": _ANSWER_SECONDS}
        if _URL.startswith(_SENTINEL):
            return _client_of_master(limits, options)
        return redis.Redis.from_url(_URL, **limits, **options)


def _client_of_master(limits: dict[str, Any], options: dict[str, Any]) -> Any:
    """A client that asks the sentinels for the master whenever it connects."""
    from redis.sentinel import Sentinel

    urls = [urlsplit(url) for url in _URL.split(";") if url.startswith(_SENTINEL)]
    settings = current_app.conf.broker_transport_options
    tls = current_app.conf.broker_use_ssl
    access = {
        "db": int(urls[0].path.strip("/") or 0),
        "username": unquote(urls[0].username or "") or None,
        "password": unquote(urls[0].password or "") or None,
        **({"ssl": True} if tls else {}),
        **(tls if isinstance(tls, dict) else {}),
    }
    places = [(url.hostname, url.port or 26379) for url in urls]
    sentinels = Sentinel(places, sentinel_kwargs={**(settings.get("sentinel_kwargs") or {}), **limits})
    # One connection for each process is all that it needs, and the pool keeps that.
    options.pop("single_connection_client", None)
    return sentinels.master_for(settings["master_name"], **access, **limits, **options)


if _NAME and _URL.startswith(("redis://", "rediss://", "unix://", _SENTINEL)):
    _way = RedisWay()
    _reporter = _Reporter(_way)
    signals.worker_ready.connect(_reporter.on_ready, weak=False)
    signals.task_prerun.connect(_reporter.on_begin, weak=False)
    signals.task_success.connect(_reporter.on_success, weak=False)
    signals.task_failure.connect(_reporter.on_failure, weak=False)
    signals.task_retry.connect(_reporter.on_failure, weak=False)
    signals.task_postrun.connect(_reporter.on_end, weak=False)
    park_tasks(_NAME, _way)
