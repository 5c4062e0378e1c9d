# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of the state of one pool on one host; ``state`` says how the journal's events add up to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

STAGED = "staged"
UNCONFIRMED = "unconfirmed"
GOOD = "good"
BAD = "bad"
UNFINISHED = "unfinished"

DEPLOY = "deploy"
ROLLBACK = "rollback"

# Phases of a rollout on one host, in the order in which they can follow each other.
SWITCHING = "switching"
SWITCHED = "switched"
CONFIRMED = "confirmed"
GOING_BACK = "going_back"
RESTORED = "restored"
ROLLED_BACK = "rolled_back"
# The way back has failed. It is gone on with once what it leads to stays up; a person or a reboot has it tried anew.
STUCK = "stuck"
OPEN_PHASES = frozenset((SWITCHING, SWITCHED, GOING_BACK, RESTORED, STUCK))


Event = dict[str, Any]


@dataclass
class Release:
    """A release on this host: ``since`` is epoch seconds by its clock, ``seal`` the digest of its seal, or "".

    ``barrier`` says why it can't be undone once it was switched to, or is "". ``hooks`` are its commands by step.
    ``scheduler`` has the ``host`` and the ``period`` (seconds) of the process that runs its schedule, if it has one.
    ``drill`` says in which way it is made to fail, or is "": what was stored for a drill is never good.
    """

    id: str
    version: str
    state: str
    since: float
    seal: str = ""
    reason: str = ""
    barrier: str = ""
    hooks: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
    drill: str = ""


@dataclass
class Barrier:
    """What keeps this host from going back to the releases ``behind`` it unless a person says so."""

    reason: str
    behind: list[str]


@dataclass
class Rollout:
    """One attempt to move this host. ``safe`` is the release the guard takes it to (None: there was none).

    ``held`` names the release at whose barrier the way back has stopped, or is "". ``once`` tells whether this is the
    host that runs hooks that are meant for one host.
    """

    token: int
    kind: str
    origin: Optional[str]
    target: Optional[str]
    safe: Optional[str]
    phase: str
    mode: str
    boot: str
    started: float
    deadline: Optional[float] = None
    processes: dict[str, int] = field(default_factory=dict)
    reason: str = ""
    held: str = ""
    once: bool = False

    @property
    def open(self) -> bool:
        """Whether the host is between two releases."""
        return self.phase in OPEN_PHASES


@dataclass
class Lease:
    """The right to change this host; ``expires`` is seconds on the host's own clock since ``boot``."""

    token: int
    kind: str
    owner: dict[str, Any]
    granted: float
    seconds: float
    boot: str
    expires: float
    released: bool = False


@dataclass
class Draining:
    """A release that was left with tasks to end, and is the reaper's from then on.

    ``deadline`` is seconds on the host's own clock since ``boot``; then ``policy`` says what becomes of them. ``keep``
    is how many good releases may stay once it is gone, ``overran`` the workers that had a task at the deadline.
    """

    release: str
    token: int
    since: float
    boot: str
    deadline: float
    policy: str
    keep: int
    overran: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Reaped:
    """A release of which every process had ended. ``outcome`` is ``clean`` or ``killed``, ``running`` who was killed.

    ``again`` tells that it was wanted once more afterwards: then only those that were killed are known to be gone.
    """

    release: str
    outcome: str
    ended: float
    running: list[dict[str, Any]]
    again: bool = False


@dataclass
class PoolState:
    """The fold of a journal. ``confirmed`` lists release ids, the latest confirmed last; ``barriers`` go by release.

    ``ran`` are the hooks of each release that have run well in the present rollout, ``hooking`` is the event of one
    that was started and has not ended. ``notices`` say by id who was told of a rollout's end, and who was not.
    ``drill`` is the last drill that has ended: its ``kind``, ``token``, ``ended`` (epoch seconds) and whether it
    ``passed``; None where there was none.
    """

    releases: dict[str, Release] = field(default_factory=dict)
    current: Optional[str] = None
    arrived_by: Optional[str] = None
    confirmed: list[str] = field(default_factory=list)
    rollout: Optional[Rollout] = None
    lease: Optional[Lease] = None
    barriers: dict[str, Barrier] = field(default_factory=dict)
    draining: dict[str, Draining] = field(default_factory=dict)
    reaped: dict[str, Reaped] = field(default_factory=dict)
    ran: dict[str, list[str]] = field(default_factory=dict)
    hooking: Optional[Event] = None
    notices: dict[str, dict[str, Any]] = field(default_factory=dict)
    drill: Optional[dict[str, Any]] = None
    last_token: int = 0
    changed: float = 0.0

    def state_of(self, release: Optional[str]) -> Optional[str]:
        """The state of a release, or None when this host has no such release."""
        known = self.releases.get(release) if release else None
        return known.state if known else None

    def good_releases(self) -> list[str]:
        """The good releases, the latest confirmed first."""
        return [release for release in reversed(self.confirmed) if self.state_of(release) == GOOD]

    def as_if_staged(self, release: str, **sealed: Any) -> PoolState:
        """This state, with a release that isn't there yet, of which ``sealed`` is known: what check mode plans from."""
        self.releases.setdefault(release, Release(release, "", STAGED, 0.0, **sealed))
        return self

    def is_drill(self, release: Optional[str]) -> bool:
        """Whether a release was stored for a drill."""
        return release in self.releases and bool(self.releases[release].drill)

    def is_spent_drill(self, release: Optional[str]) -> bool:
        """Whether a drill's release can go: the next deploy has to ask for the tasks of workers that were killed."""
        reaped = self.reaped.get(release or "")
        return self.is_drill(release) and not (reaped and reaped.running)

    def is_heading_for(self, release: str) -> bool:
        """Whether this host is on a release, or was switched to it by a rollout that is not over."""
        return self.current == release or bool(self.rollout and self.rollout.open and self.rollout.target == release)
