# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every way through a scope, those with the fewest disturbances first, and each world once."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tests.explore import promises
from tests.explore.canonical import hosts_key, world_key
from tests.explore.world import Move, Scope, World, moves, start


class PromiseBroken(AssertionError):
    """A promise is broken; the message is the shortest way to it."""


@dataclass
class Explored:
    """What was seen: worlds, states of all hosts with nobody at work, moves, and how many moves noted each event.

    ``tasks`` are the tasks of the flows that were done.
    """

    worlds: int = 0
    hosts: int = 0
    moves: int = 0
    events: Counter[str] = field(default_factory=Counter)
    tasks: set[tuple[str, str]] = field(default_factory=set)


class _Search:
    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.explored = Explored()
        self.seen: set[int] = set()
        self.checked: set[int] = set()
        self.way: list[tuple[int, str]] = []
        self.layers: list[deque[tuple[int, World]]] = [deque() for _depth in range(scope.depth + 1)]

    def run(self) -> Explored:
        """Explore all; the first broken promise ends it."""
        self._meet(start(self.scope), 0, -1, "the start")
        for depth in range(self.scope.depth + 1):
            while self.layers[depth]:
                number, world = self.layers[depth].popleft()
                self._go_on(world, depth, number)
        return self.explored

    def _go_on(self, world: World, depth: int, number: int) -> None:
        for move in moves(world, self.scope):
            self.explored.moves += 1
            self.explored.events.update(event["event"] for event in move.events)
            if move.run:
                self.explored.tasks.add((move.run.flow, move.run.task.name))
            self._require(promises.of_a_move(world, move), number, move)
            self._require(promises.of_an_exit(move), number, move)
            if depth + move.cost <= self.scope.depth:
                self._meet(move.after, depth + move.cost, number, move.label, move)

    def _meet(self, world: World, depth: int, parent: int, label: str, move: Move | None = None) -> None:
        key = hash(world_key(world))
        if key in self.seen:
            return
        self.seen.add(key)
        self.explored.worlds += 1
        self.way.append((parent, label))
        number = len(self.way) - 1
        self.layers[depth].append((number, world))
        self._require(self._of_hosts(world), number)

    def _of_hosts(self, world: World) -> Iterator[str]:
        """What is asked of the hosts alone is asked once for all worlds whose hosts are in the same state."""
        for facts in map(promises.unleased, world.facts):
            if self._is_new(World((facts,))):
                yield from promises.at_every_moment(facts)
                yield from promises.in_the_end(facts)
        alone = World(tuple(map(promises.unleased, world.facts)))
        late = World(tuple(map(promises.settled, alone.facts)))
        for when, now in (("before the guards fire", alone), ("after the guards have fired", late)):
            if self._is_new(now, when):
                self.explored.hosts += 1
                yield from promises.runs_again(now, self.scope, when)

    def _is_new(self, world: World, when: str = "") -> bool:
        key = hash((when, hosts_key(world)))
        new = key not in self.checked
        self.checked.add(key)
        return new

    def _require(self, broken: Iterable[str], number: int, move: Move | None = None) -> None:
        for what in broken:
            way = [move.label] if move else []
            while number >= 0:
                number, label = self.way[number]
                way.append(label)
            lines = [f"{place:3}. {label}" for place, label in enumerate(reversed(way))]
            raise PromiseBroken("\n".join([f"Broken in scope '{self.scope.name}': {what}", *lines]))


def explore(scope: Scope) -> Explored:
    """Explore a scope.

    :raises PromiseBroken: with the shortest way to it.
    """
    return _Search(scope).run()
