# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens to a host of paper: the collection's own modules and host program, with no clocks and no files."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._host import (
    asking,
    clock,
    draining,
    info,
    reaping,
    staging,
    steps,
    way_back,
)
from ansible_collections.backstep.workers.plugins.module_utils._host.layout import SCHEDULER_INDEX
from ansible_collections.backstep.workers.plugins.module_utils._host.store import Content
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BackstepError
from ansible_collections.backstep.workers.plugins.module_utils._rollout.pool_state import STUCK
from ansible_collections.backstep.workers.plugins.module_utils._waiting import deadline
from ansible_collections.backstep.workers.plugins.plugin_utils import owner

from tests.explore.flow import Run
from tests.explore.paper import BROKER, PROGRAM, Facts, Meanwhile, PaperHost, Worker, spec_of

_MODULES = {
    name: importlib.import_module(f"ansible_collections.backstep.workers.plugins.modules.{name}")
    for name in ("release_info", "release_switch", "release_confirm", "rollout_lease", "rollout_drill")
}


@dataclass
class Done:
    """What came of an act on a host.

    :param facts: how the host is after it.
    :param ways: how it would be if it had been cut short, and just before what.
    :param events: what was noted.
    :param answer: what the caller was told.
    :param locks: how often it waited for the host's lock.
    """

    facts: Facts
    ways: list[tuple[str, Facts]]
    events: list[dict[str, Any]]
    answer: dict[str, Any]
    locks: int = 0


class _Stage:
    """Which host the code is acting on just now, and on behalf of whom."""

    host: PaperHost
    run: Run
    arguments: dict[str, Any]
    result: dict[str, Any]
    dead: frozenset[str] = frozenset()
    monotonic = 0.0


_NOW = _Stage()


class _Module:
    """In the place of ``AnsibleModule``: options as they were given, and the defaults of the others."""

    check_mode = False

    def __init__(self, argument_spec: dict[str, Any], **_rest: Any) -> None:
        self.params = {name: _NOW.arguments.get(name, option.get("default")) for name, option in argument_spec.items()}


class _Time:
    """In the place of the module ``time``: a host's clock stands still, and whoever waits finds the time to be up."""

    CLOCK_BOOTTIME = 7

    @staticmethod
    def clock_gettime(_which: int) -> float:
        return _NOW.host.facts.up

    @staticmethod
    def time() -> float:
        return 1_000_000.0 + _NOW.host.facts.noted

    @staticmethod
    def monotonic() -> float:
        return _NOW.monotonic

    @staticmethod
    def sleep(_seconds: float) -> None:
        _NOW.monotonic += 10_000.0


def _real_sleep(_seconds: float) -> None:
    pytest.fail("something waits by the real clock: its module's time has to be of paper, too")


def _kill(pid: int) -> None:
    host = _NOW.host
    workers = dict(host.facts.workers)
    last_pid = host.facts.last_pid
    for key, worker in host.facts.workers.items():
        if worker.pid == pid:
            del workers[key]
            if worker.again or not worker.ending:
                last_pid += 1
                workers[key] = Worker(last_pid)
    host.act(f"kill {pid}", workers=workers, last_pid=last_pid)


def _keep(_module: Any, work: Callable[[], dict[str, Any]]) -> None:
    _NOW.result = work()


@contextmanager
def on_paper(*mutations: tuple[Any, str, Any]) -> Iterator[None]:
    """Have the collection's code act on hosts of paper.

    :param mutations: what else to replace: where, which name, by what.
    """
    with pytest.MonkeyPatch.context() as patch:
        for module in (clock, deadline):
            patch.setattr(module, "time", _Time)
        patch.setattr(time, "sleep", _real_sleep)
        patch.setattr(clock, "_boot_name", lambda: f"boot-{_NOW.host.facts.boot}")
        patch.setattr(info, "start_of", lambda _pid: (1, 0.0))
        patch.setattr(steps, "replace_link", lambda link, target: link.point(target))
        patch.setattr(steps, "fsync_directory", lambda _path: None)
        patch.setattr(draining, "kill_process", _kill)
        patch.setattr(asking, "asked_for", lambda _host, _request: nullcontext())
        patch.setattr(asking, "pressing", lambda _host: [])
        patch.setattr(staging, "check_user", lambda _user: None)
        patch.setattr(staging, "_check_conf_dir", lambda _host: None)
        patch.setattr(owner, "this_run", lambda: {"run": _NOW.run.name, "user": _NOW.run.name})
        patch.setattr(owner, "dead_runs", lambda _answers: set(_NOW.dead))
        for module in _MODULES.values():
            patch.setattr(module, "AnsibleModule", _Module)
            patch.setattr(module, "run", _keep)
            patch.setattr(module, "open_host", lambda _params: _NOW.host)
        for where, name, new in mutations:
            patch.setattr(where, name, new)
        yield


def behalf(run: Run, dead: frozenset[str]) -> None:
    """Decisions are taken on behalf of this run from now on; ``dead`` are the runs that it can prove to be dead."""
    _NOW.run, _NOW.dead = run, dead


def _on(facts: Facts, by: str, act: Callable[[PaperHost], dict[str, Any]], meanwhile: Meanwhile | None = None) -> Done:
    host = PaperHost(facts, by, meanwhile)
    before, _NOW.host = getattr(_NOW, "host", host), host
    try:
        answer = act(host)
    except BackstepError as error:
        answer = {"failed": True, **error.result()}
    finally:
        _NOW.host = before
    return Done(host.facts, host.ways, host.events, answer, host.locks)


def take_step(run: Run, facts: Facts, meanwhile: Meanwhile | None = None) -> Done:
    """Do the task that is next for a run, on the host that is next."""
    arguments, name = run.arguments(), run.task.module
    if name == "rollout_lease":
        # Nor does it read the journal on its way: nobody looks at the report.
        arguments.pop("events", None)

    def act(host: PaperHost) -> dict[str, Any]:
        _NOW.arguments = arguments
        if name != "release":
            _MODULES[name].main()
            return _NOW.result
        spec = spec_of(arguments["version"], host.facts, arguments.get("drill"))
        if arguments["state"] == "planned":
            digest = host.program_digest()
            return staging.plan_host(host, spec, program_digest=digest, broker_url=BROKER, needed_bytes=0)
        content = Content(archive="", directory="", config={}, environment={}, build=[], build_seconds=0)
        return staging.stage_host(host, spec, content, rollout=arguments["rollout"], program=PROGRAM, broker_url=BROKER)

    return _on(facts, "controller", act, meanwhile)


def fire_guard(facts: Facts, *, boot: bool = False) -> Done:
    """The guard runs. A timer that has fired is gone; a guard that is killed is started again by its supervisor."""
    facts = replace(facts, booting=False) if boot else replace(facts, up=max(facts.up, facts.guard or 0.0), guard=None)
    done = _on(facts, "guard", lambda host: {"said": way_back.guard(host, boot=boot)})
    if is_stuck(done.facts) and done.facts.guard is None:
        # It stays, and looks again and again.
        done = replace(done, facts=replace(done.facts, guard=done.facts.up))
    ways = [
        (way, replace(cut, booting=True) if boot else replace(cut, guard=cut.up if cut.guard is None else cut.guard))
        for way, cut in done.ways
    ]
    return replace(done, ways=ways)


def is_stuck(facts: Facts) -> bool:
    """Whether a way back has failed here."""
    return facts.state.rollout is not None and facts.state.rollout.phase == STUCK


def person_goes_back(facts: Facts, wish: str = "") -> Done:
    """A person runs the host program."""
    return _on(facts, "person", lambda host: {"said": way_back.go_back_alone(host, wish, "a person")})


def reaper_looks(facts: Facts) -> Done:
    """The reaper sees what can go."""
    return _on(facts, "reaper", lambda host: {"said": reaping.reap(host)})


def drain_is_over(facts: Facts) -> Facts | None:
    """The host when the time of the first drain is up; None when nothing drains."""
    ends = [entry.deadline for entry in facts.state.draining.values() if entry.boot == f"boot-{facts.boot}"]
    return replace(facts, up=max(facts.up, min(ends))) if ends else None


def reboot(facts: Facts) -> Facts:
    """The host after a power cut: what is enabled runs, and the guard at boot has yet to."""
    pid = facts.last_pid
    workers = {}
    for unit in sorted(facts.at_boot):
        if unit[1] != SCHEDULER_INDEX:
            pid += 1
            workers[unit] = Worker(pid)
    schedulers = tuple(release for release, index in sorted(facts.at_boot) if index == SCHEDULER_INDEX)
    return replace(
        facts,
        boot=facts.boot + 1,
        up=1000.0,
        guard=None,
        reaper=False,
        booting=bool(facts.installed),
        workers=workers,
        schedulers=schedulers,
        last_pid=pid,
    )


def tasks_end(facts: Facts) -> Facts:
    """The workers that were asked to end have finished their tasks."""
    workers, pid = {}, facts.last_pid
    for key, worker in facts.workers.items():
        if not worker.ending:
            workers[key] = worker
        elif worker.again:
            pid += 1
            workers[key] = Worker(pid)
    return replace(facts, workers=workers, last_pid=pid)
