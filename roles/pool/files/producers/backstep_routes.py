# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Has a producer send tasks where the routes say that Backstep keeps in the broker: a file to be copied into the app.

``route_celery(app)``, ``route_rq(queue)`` or ``route_dramatiq(broker)``, once, where the app makes it. From then on a
share of what is sent to a queue goes to ``<queue>.for-<version>`` while there is a route (``queue_route``). A task is
chosen by its id, so that one that is sent again, as it is retried or due, goes where it went before while the route is
the same. A route is looked up once a second at most. Where nobody can tell it, or it is over, tasks go to the plain
queue.

On RabbitMQ ``backstep_gates.py`` has to lie beside this file. The book of routes is read there by a connection of its
own, one for each process. While it can't be read, what was read last holds, until the route is over by this machine's
clock: RabbitMQ tells no time.

Python 3.9, the standard library, and the library of the engine.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from functools import lru_cache
from importlib import import_module
from typing import Any
from uuid import uuid4

_TAG = ".for-"
_CACHED_SECONDS = 1.0
# Of a sender's time, for a look at RabbitMQ.
_LOOK_SECONDS = 1.0
_LOCKED_SECONDS = 0.1
# After which a connection isn't used again: RabbitMQ may have ended it, and a count that is the same says little.
_IDLE_SECONDS = 10.0
_HEARTBEAT_SECONDS = 30
_FAREWELL_SECONDS = 0.1

_log = logging.getLogger(__name__)

Route = dict[str, Any]
Ask = Callable[[str], "tuple[Any, float]"]
"""The line of a queue in the book of routes (JSON), or None, and the broker's clock (epoch seconds)."""


class Routes:
    """Where tasks go, as the broker says it."""

    def __init__(self, ask: Ask, seconds: float = _CACHED_SECONDS) -> None:
        """:param seconds: for how long an answer holds."""
        self._ask, self._seconds = ask, seconds
        self._complained = False
        self._known: dict[str, tuple[float, Route | None]] = {}
        """By queue: until when (by this process's clock) it isn't asked for again, and its route."""

    def queue_for(self, queue: str, task: str, task_id: str) -> str:
        """The queue that a task is to be sent to which would have gone to this one."""
        plain, _tag, _version = queue.rpartition(_TAG)
        if not plain:
            return self._chosen(queue, task, task_id)
        # Somebody sends it again: where it was, while that is still where tasks go.
        route = self._route(plain)
        return queue if route and route["to"] == queue else plain

    def _chosen(self, queue: str, task: str, task_id: str) -> str:
        route = self._route(queue)
        if not route or (route["tasks"] and task not in route["tasks"]):
            return queue
        # Not the number by which gates decide: of what one lets pass, a route would take all or nothing.
        number = zlib.crc32(f"route:{task_id}".encode("utf-8", "surrogateescape")) % 10_000
        return str(route["to"]) if number < round(route["share"] * 100) else queue

    def _route(self, queue: str) -> Route | None:
        until, route = self._known.get(queue, (0.0, None))
        if time.monotonic() >= until:
            route, left = self._look(queue)
            self._known[queue] = (time.monotonic() + min(self._seconds, left), route)
        return route

    def _look(self, queue: str) -> tuple[Route | None, float]:
        """The route of a queue, and for how many seconds it lasts."""
        try:
            line, now = self._ask(queue)
            route = json.loads(line) if line else None
            left = float(route["until"]) - now if route else self._seconds
        except Exception as error:  # whatever it is, sending the task itself shows whether there is a broker
            if _ends_task(error):
                raise
            if not self._complained:
                self._complained = True
                # Only its kind: the text could hold the broker's password.
                _log.warning("Tasks of %s go to the plain queue: no route is known (%s)", queue, type(error).__name__)
            return None, self._seconds
        self._complained = False
        return (route, left) if left > 0 else (None, self._seconds)


def _ends_task(error: BaseException) -> bool:
    """Whether it isn't about the broker, but has the task end that sends just now."""
    return not isinstance(error, Exception) or type(error).__name__ == "SoftTimeLimitExceeded"


def _ask_redis(client: Any, engine: str, queue: str) -> tuple[Any, float]:
    with client.pipeline(transaction=False) as both:
        both.hget(f"backstep:{engine}:book:routes", queue)
        both.time()
        line, (seconds, micros) = both.execute()
    return line, seconds + micros / 1e6


class _Reader:
    """The book of routes as it lies in RabbitMQ, for all threads of one process."""

    def __init__(self, link: _Link) -> None:
        beside = f"{__package__}." if __package__ else ""
        self._link = link
        self._book = import_module(f"{beside}backstep_gates").Follower(link.count, link.body, "routes")
        self._looking = threading.Lock()
        self._looked, self._next = time.monotonic(), 0.0
        self._complained = False

    def line(self, queue: str) -> str | None:
        """What it says of a queue, as it was read last.

        :raises Exception: it was never read.
        """
        # While one looks, the others go on, but for the first time.
        if time.monotonic() >= self._next and self._looking.acquire(timeout=0 if self._book.is_read else _LOOK_SECONDS):
            try:
                if time.monotonic() >= self._next:
                    self._look()
            finally:
                self._looking.release()
        line: str | None = self._book.line(queue)
        return line

    def _look(self) -> None:
        began = time.monotonic()
        was_idle = began > self._looked + _IDLE_SECONDS
        if was_idle:
            self._drop()
        try:
            self._link.begin(_LOOK_SECONDS)
            is_free = self._book.look(self._link.channel)
        except BaseException as error:
            self._drop()
            # At most a tenth of the sender's time is spent.
            self._next = time.monotonic() + max(_CACHED_SECONDS, 10 * (time.monotonic() - began))
            if not self._book.is_read or _ends_task(error):
                raise
            self._complain("Routes can't be read now, so those that were read last hold: %s", type(error).__name__)
            return
        self._looked, self._next = began, began + (_CACHED_SECONDS if is_free else _LOCKED_SECONDS)
        if self._book.is_refused:
            self._next = float("inf")
            self._complain("No task is routed: RabbitMQ doesn't let this user read the routes.")
        else:
            self._complained = False
        if was_idle or self._book.is_refused:
            self._drop()  # who sends seldom would have RabbitMQ end the connection, and note that as an error

    def _drop(self) -> None:
        self._link.drop()
        self._book.forget()

    def _complain(self, *said: str) -> None:
        if not self._complained:
            self._complained = True
            _log.warning(*said)


class _Link(ABC):
    """A connection to RabbitMQ that nobody else uses, and that waits no longer than is said."""

    def __init__(self) -> None:
        self._until = 0.0
        self._connection: Any = None

    def begin(self, seconds: float) -> None:
        """Wait for so long from now on, all in all."""
        self._until = time.monotonic() + seconds
        if self._connection is not None:
            self.limit()

    def channel(self) -> Any:
        """A new one."""
        self._connection = self._connection or self._opened()
        self.limit()
        return self._connection.channel()

    def drop(self) -> None:
        """Forget the connection; the broker then gives back what was taken, and unlocks what was locked."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._until = time.monotonic() + _FAREWELL_SECONDS
            try:
                self._close(connection)
            except Exception:  # noqa: BLE001  # it is forgotten either way
                _log.debug("The connection was lost already.")

    def left(self) -> float:
        """For how many seconds to wait."""
        return max(0.001, self._until - time.monotonic())

    def limit(self) -> None:  # noqa: B027  # not all need it: pika is told its limits when it connects
        """Have the connection wait no longer than that."""

    @abstractmethod
    def count(self, declared: Any) -> int:
        """As ``Follower`` wants it."""

    @abstractmethod
    def body(self, got: Any) -> bytes | None:
        """As ``Follower`` wants it."""

    @abstractmethod
    def _opened(self) -> Any:
        """Open the connection."""

    def _close(self, connection: Any) -> None:
        connection.close()


class _ByAmqp(_Link):
    """By the library that Celery uses, to where its app sends."""

    def __init__(self, app: Any) -> None:
        super().__init__()
        self._where = app.connection_for_write().clone(heartbeat=_HEARTBEAT_SECONDS)

    def limit(self) -> None:
        """By the socket, which with gevent, too, is that of Python."""
        self._connection.sock.settimeout(self.left())

    def count(self, declared: Any) -> int:
        self.limit()
        return int(declared.message_count)

    def body(self, got: Any) -> bytes | None:
        self.limit()
        return None if got is None else got.body

    def _opened(self) -> Any:
        nodes_left = len(self._where.alt) or 1
        while True:
            self._where.connect_timeout = self.left() / nodes_left
            try:
                # Not by the connection of kombu, which tries again in its own time.
                return self._where.transport.establish_connection()
            except OSError:
                self._where.maybe_switch_next()
                nodes_left -= 1
                if not nodes_left:
                    raise

    def _close(self, connection: Any) -> None:
        try:
            connection.sock.settimeout(self.left())
            connection.close()
        finally:
            connection.collect()


class _ByPika(_Link):
    """By the library that Dramatiq uses, to where its broker sends."""

    def __init__(self, parameters: Any) -> None:
        super().__init__()
        self._where = parameters if isinstance(parameters, list) else [parameters]

    def count(self, declared: Any) -> int:
        return int(declared.method.message_count)

    def body(self, got: Any) -> bytes | None:
        body: bytes | None = got[2]
        return body

    def _opened(self) -> Any:
        pika = import_module("pika")
        found = pika.BlockingConnection([self._limited(one) for one in self._where])
        flush = found._flush_output

        def flush_output(*waiters: Any) -> None:
            """By itself it waits until the connection is lost."""
            late: list[bool] = []
            timer = found._impl._adapter_call_later(self.left(), lambda: late.append(True))
            try:
                flush(*waiters, *([lambda: bool(late)] if waiters else []))
            finally:
                found._impl._adapter_remove_timeout(timer)
            if late and not any(ready() for ready in waiters):
                raise TimeoutError

        found._flush_output = flush_output
        return found

    def _limited(self, theirs: Any) -> Any:
        own = copy(theirs)
        own.heartbeat, own.connection_attempts = _HEARTBEAT_SECONDS, 1
        own.socket_timeout = own.stack_timeout = self.left() / len(self._where)
        return own


def _ask_rabbitmq(link: Callable[[], _Link]) -> Ask:
    # By process. One that is forked has its parent's, whose connection isn't its own, and must not be closed either.
    readers: dict[int, _Reader] = {}

    def ask(queue: str) -> tuple[Any, float]:
        known = os.getpid()
        reader = readers.get(known) or readers.setdefault(known, _Reader(link()))
        return reader.line(queue), time.time()

    return ask


def routes_of_celery(app: Any) -> Routes:
    """Where the tasks of a Celery app go that is configured."""
    if app.connection_for_write().transport.driver_type == "amqp":
        return Routes(_ask_rabbitmq(lambda: _ByAmqp(app)), 0.0)

    def ask(queue: str) -> tuple[Any, float]:
        with app.pool.acquire(block=True) as connection, connection.default_channel.conn_or_acquire() as client:
            return _ask_redis(client, "celery", queue)

    return Routes(ask)


def route_celery(app: Any) -> None:
    """Have everything that a Celery app sends go by the routes: by ``delay``, ``apply_async``, canvas or beat."""
    send = app.send_task
    # It may be configured later.
    routes = lru_cache(None)(lambda: routes_of_celery(app))

    def send_task(
        name: str,
        args: Any = None,
        kwargs: Any = None,
        countdown: Any = None,
        eta: Any = None,
        task_id: str | None = None,
        **options: Any,
    ) -> Any:
        known = task_id or str(uuid4())
        router = _CeleryRouter(app, options.pop("router", None) or app.amqp.router, routes(), known)
        return send(name, args, kwargs, countdown, eta, known, router=router, **options)

    app.send_task = send_task


class _CeleryRouter:
    """The app's own router for one task, and then the routes."""

    def __init__(self, app: Any, router: Any, routes: Routes, task_id: str) -> None:
        self._app, self._router, self._routes, self._id = app, router, routes, task_id

    def route(self, options: dict[str, Any], name: str, *more: Any, **named: Any) -> dict[str, Any]:
        """As Celery's own does it."""
        found: dict[str, Any] = self._router.route(options, name, *more, **named)
        queue = found.get("queue")
        plain = getattr(queue, "name", queue)
        to = self._routes.queue_for(plain, name, self._id) if plain else plain
        if to == plain:
            return found
        kept = {key: value for key, value in found.items() if key not in ("exchange", "exchange_type", "routing_key")}
        return {**kept, "queue": self._app.amqp.queues[to]}


def routes_of_dramatiq(broker: Any) -> Routes:
    """Where the tasks of a Dramatiq broker go."""
    if hasattr(broker, "client"):
        return Routes(lambda queue: _ask_redis(broker.client, "dramatiq", queue))
    return Routes(_ask_rabbitmq(lambda: _ByPika(broker.parameters)), 0.0)


def route_dramatiq(broker: Any) -> None:
    """Have everything that a Dramatiq broker enqueues go by the routes."""
    enqueue = broker.enqueue
    routes = routes_of_dramatiq(broker)

    def routed(message: Any, *, delay: int | None = None) -> Any:
        queue = routes.queue_for(message.queue_name, message.actor_name, message.message_id)
        return enqueue(message if queue == message.queue_name else message.copy(queue_name=queue), delay=delay)

    broker.enqueue = routed


def route_rq(queue: Any) -> Any:
    """Have everything that is enqueued by this RQ queue go by the routes; the queue itself."""
    base = type(queue)
    routes = Routes(lambda name: _ask_redis(queue.connection, "rq", name))

    def other(func: Any, task_id: str) -> Any:
        """A queue by which nothing is routed."""
        task = func if isinstance(func, str) else f"{func.__module__}.{getattr(func, '__qualname__', '')}"
        return base(
            routes.queue_for(queue.name, task, task_id),
            connection=queue.connection,
            is_async=queue.is_async,
            default_timeout=queue._default_timeout,
            serializer=queue.serializer,
            job_class=queue.job_class,
        )

    def enqueue_call(func: Any, *args: Any, **options: Any) -> Any:
        options["job_id"] = options.get("job_id") or str(uuid4())
        return other(func, options["job_id"]).enqueue_call(func, *args, **options)

    def enqueue_at(datetime: Any, func: Any, *args: Any, **options: Any) -> Any:
        options["job_id"] = options.get("job_id") or str(uuid4())
        return other(func, options["job_id"]).enqueue_at(datetime, func, *args, **options)

    def enqueue_many(job_datas: Any, *args: Any, **options: Any) -> list[Any]:
        by_queue: dict[str, tuple[Any, list[Any]]] = {}
        for data in job_datas:
            known = data._replace(job_id=data.job_id or str(uuid4()))
            target = other(known.func, known.job_id)
            by_queue.setdefault(target.name, (target, []))[1].append(known)
        return [job for target, some in by_queue.values() for job in target.enqueue_many(some, *args, **options)]

    queue.enqueue_call, queue.enqueue_at, queue.enqueue_many = enqueue_call, enqueue_at, enqueue_many
    return queue
