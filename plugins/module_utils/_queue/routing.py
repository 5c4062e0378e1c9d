# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Send shares of queues to the workers of one version, take them back with what lies there, count what they begin."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable, Optional

from .._rollout.errors import RouteRefused
from .._rollout.routes import Route, Starts, effective, is_tagged, parse, require_own, tagged_queue
from .books import ROUTES_BOOK
from .engine import CANARY_PREFIX, Engine, Moved
from .engines._moves import Tally


@dataclass(frozen=True)
class Routing:
    """What was, or would be, done."""

    before: Mapping[str, Route]
    """Those that were not over, by their queues."""
    after: Mapping[str, Route]
    moved: Moved = field(default_factory=lambda: Tally(None).result())
    """What was put back into the plain queues."""

    @property
    def changed(self) -> bool:
        """Whether a task goes elsewhere than before."""
        return any(action["action"] != "extend" for action in self.actions)

    @property
    def actions(self) -> list[dict[str, Any]]:
        """The same, one by one."""
        found: list[dict[str, Any]] = []
        for queue, route in self.after.items():
            verb = "extend" if route.says_as(self.before.get(queue)) else "route"
            found.append({"action": verb, "queue": queue, "to": route.to, "share": route.share})
        for queue, route in self.before.items():
            if queue not in self.after:
                found.append({"action": "end_route", "queue": queue, "to": route.to})
        moved = self.moved.by_queue.items()
        return [*found, *({"action": "move", "queue": queue, "count": count} for queue, count in moved)]


def routes(engine: Engine) -> dict[str, Route]:
    """All routes, by their queues; also those that are over."""
    return parse(engine.read_book(ROUTES_BOOK))


def set_routes(engine: Engine, wish: Sequence[Route], now: float, dry_run: bool = False) -> Routing:
    """Write these routes, or extend them.

    :param now: the broker's clock.
    :raises RouteRefused: another owner has one of them, or nobody listens where one leads; nothing was changed.
    """
    there = routes(engine)
    for route in wish:
        require_own([there[route.queue]] if route.queue in there else [], route.by, now)
    _require_workers(engine, wish)
    if not dry_run:
        engine.write_book(ROUTES_BOOK, {route.queue: route.line for route in wish})
    queues = [route.queue for route in wish]
    return Routing(_living(there, queues, now), {route.queue: route for route in wish})


def end_routes(
    engine: Engine,
    queues: Sequence[str],
    now: float,
    rest: Callable[[float], Any],
    *,
    version: Optional[str] = None,
    owner: Optional[str] = None,
    move: bool = True,
    dry_run: bool = False,
) -> Routing:
    """Take routes away; then put what lies in the tagged queues, and no worker has taken, back into the plain ones.

    Killed at any moment, the same call with the version finishes it.

    :param rest: waits for so many seconds.
    :param version: only routes to this one; its tagged queues are emptied whether or not there was a route.
    :param owner: whose they have to be; ``None`` for whoever's.
    :raises RouteRefused: one is another owner's; nothing was changed.
    """
    plain = [queue for queue in queues if not is_tagged(queue)]
    there = {
        queue: route
        for queue, route in routes(engine).items()
        if queue in plain and (version is None or route.version == version)
    }
    if owner is not None:
        require_own(there.values(), owner, now)
    before = _living(there, plain, now)
    if there and not dry_run:
        engine.write_book(ROUTES_BOOK, dict.fromkeys(there))
    tally = Tally(None)
    if move:
        tagged = {queue: there[queue].to for queue in there}
        if version is not None:
            tagged = {queue: tagged_queue(queue, version) for queue in plain}
        _empty(engine, tagged, tally, dry_run)
        if before and not dry_run:
            rest(engine.followed_seconds)
            _empty(engine, tagged, tally, dry_run)
    return Routing(before, {}, tally.result())


def measure(
    engine: Engine, queues: Sequence[str], version: str, rest: Callable[[float], Any], seconds: float
) -> dict[str, Any]:
    """What ``_rollout.routes.effective`` tells about the tasks that are begun in so many seconds."""
    before = starts(engine, queues, version)
    rest(seconds)
    return effective(before, starts(engine, queues, version), version)


def starts(engine: Engine, queues: Sequence[str], version: str) -> dict[str, Starts]:
    """The workers that Backstep has named, of these queues and of the tagged ones of a version, and what they have
    begun.
    """
    names = {*queues, *(tagged_queue(queue, version) for queue in queues)}
    seen = [worker for worker in engine.workers() if worker.parsed and names & set(worker.queues)]
    held = Counter(task.worker for task in engine.executing(sorted(names)) if not task.id.startswith(CANARY_PREFIX))
    return {
        worker.name: Starts(worker.parsed.release, worker.finished + (worker.failed or 0) + held[worker.name])
        for worker in seen
        if worker.parsed
    }


def _living(there: Mapping[str, Route], queues: Sequence[str], now: float) -> dict[str, Route]:
    return {queue: route for queue, route in there.items() if queue in queues and route.until > now}


def _require_workers(engine: Engine, wish: Sequence[Route]) -> None:
    listened = {queue for worker in engine.workers() for queue in worker.queues}
    deserted = sorted(route.to for route in wish if route.to not in listened)
    if deserted:
        raise RouteRefused(
            f"No living worker listens to {', '.join(deserted)}.",
            left="No route was changed.",
            next_step="Deploy that version with pool_routes: true, and wait until its workers are up.",
            queues=deserted,
        )


def _empty(engine: Engine, tagged: Mapping[str, str], tally: Tally, dry_run: bool) -> None:
    for queue, source in tagged.items():
        tally.join(engine.reroute(source, queue, dry_run))
