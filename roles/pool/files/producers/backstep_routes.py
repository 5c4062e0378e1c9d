# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Has a producer send tasks where the routes say that Backstep keeps in the broker: a file to be copied into the app.

``route_celery(app)``, ``route_rq(queue)`` or ``route_dramatiq(broker)``, once, where the app makes it. From then on a
share of what is sent to a queue goes to ``<queue>.for-<version>`` while there is a route (``queue_route``). A task is
chosen by its id, so that one that is sent again, as it is retried or due, goes where it went before while the route is
the same. A route is looked up once a second at most. Where nobody can tell it, or it is over, tasks go to the plain
queue.

Brokers on Redis. Python 3.9, the standard library, and the library of the engine.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable
from typing import Any
from uuid import uuid4

_TAG = ".for-"
_CACHED_SECONDS = 1.0

Route = dict[str, Any]
Ask = Callable[[str], "tuple[Any, float]"]
"""The line of a queue in the book of routes (JSON), or None, and the broker's clock (epoch seconds)."""


class Routes:
    """Where tasks go, as the broker says it."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
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
            self._known[queue] = (time.monotonic() + min(_CACHED_SECONDS, left), route)
        return route

    def _look(self, queue: str) -> tuple[Route | None, float]:
        """The route of a queue, and for how many seconds it lasts."""
        try:
            line, now = self._ask(queue)
            route = json.loads(line) if line else None
            left = float(route["until"]) - now if route else _CACHED_SECONDS
        except Exception:  # noqa: BLE001  # whatever it is, sending the task itself shows whether the broker is there
            return None, _CACHED_SECONDS
        return (route, left) if left > 0 else (None, _CACHED_SECONDS)


def _ask_redis(client: Any, engine: str, queue: str) -> tuple[Any, float]:
    with client.pipeline(transaction=False) as both:
        both.hget(f"backstep:{engine}:book:routes", queue)
        both.time()
        line, (seconds, micros) = both.execute()
    return line, seconds + micros / 1e6


def route_celery(app: Any) -> None:
    """Have everything that a Celery app sends go by the routes: by ``delay``, ``apply_async``, canvas or beat."""
    send = app.send_task

    def ask(queue: str) -> tuple[Any, float]:
        with app.pool.acquire(block=True) as connection, connection.default_channel.conn_or_acquire() as client:
            return _ask_redis(client, "celery", queue)

    routes = Routes(ask)

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
        router = _CeleryRouter(app, options.pop("router", None) or app.amqp.router, routes, known)
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


def route_dramatiq(broker: Any) -> None:
    """Have everything that a Dramatiq broker enqueues go by the routes."""
    enqueue = broker.enqueue
    routes = Routes(lambda queue: _ask_redis(broker.client, "dramatiq", queue))

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
