# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where faults happen: a pool on two local hosts, controllers that can be killed, and what is really so afterwards."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.backstep.workers.plugins.module_utils._host.host import Host
from ansible_collections.backstep.workers.plugins.module_utils._queue.engine import Engine
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine

from tests.demo.evidence import look
from tests.demo.playbooks import command
from tests.demo.production import Production
from tests.demo.stand import PROCESSES, QUEUE, Stand, a_stand
from tests.support.ledger import Balance, balance
from tests.support.local_hosts import marked
from tools.common import ToolError, wait_for

HOSTS = ("w1", "w2")
MARK = "BACKSTEP_FAULTS"
PLAY_SECONDS = 300.0
REST_SECONDS = 60.0
END_SECONDS = 30.0
# The guard's time: at least that, and so many times what a deploy takes on this machine, lest it fires in a good one.
_CONFIRM_SECONDS = 20.0
_CONFIRM_DEPLOYS = 2.5
# How late the guard may be: it starts, waits for a step that is under way, and proves what it has brought back. At
# least that, and as long as a deploy takes on this machine.
_GRACE_SECONDS = 10.0
VARIABLES: dict[str, Any] = {
    "pool_hosts": ",".join(HOSTS),
    "pool_waves": [1, "100%"],
    "pool_health": {"bake": 1, "canary_timeout": 10},
    "pool_keep": 1,
}
_ANNOUNCEMENT = re.compile(r'^.*(?:were cut off; |"msg": "task-).*$', re.MULTILINE)
_TASK = re.compile(r"task-\d+")


@dataclass
class Controller:
    """A playbook under way, with a mark that all of its processes carry."""

    process: subprocess.Popen[bytes]
    log: Path
    mark: str

    @property
    def output(self) -> str:
        """What it has said so far."""
        return self.log.read_text(encoding="utf-8")

    @property
    def announced(self) -> set[str]:
        """The tasks of which it has said that they may run twice."""
        return {task for line in _ANNOUNCEMENT.findall(self.output) for task in _TASK.findall(line)}

    def running(self) -> bool:
        """Whether the playbook is still under way."""
        return self.process.poll() is None

    def wait(self, seconds: float = PLAY_SECONDS) -> int:
        """Wait for its end; the exit status, negative when a signal ended it."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise ToolError(f"The playbook took more than {seconds:.0f} s:\n{self.output[-3000:]}") from None

    def own(self) -> list[int]:
        """Its processes on the controller: those of ``ansible-playbook``, and not the steps on the hosts."""
        found = []
        for pid in marked(MARK, self.mark):
            with suppress(OSError):
                if b"ansible-playbook" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found

    def steps(self) -> list[int]:
        """The steps on the hosts that are under way: a module is read by Python from its standard input."""
        found = []
        for pid in marked(MARK, self.mark):
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
                if len(words) == 1 and b"python" in words[0]:
                    found.append(pid)
        return found

    def wait_steps(self) -> None:
        """Wait until the last step is over, which goes on without it.

        :raises ToolError: one isn't.
        """
        wait_for("the steps to end", lambda: str(self.steps() or "") or None, timeout=PLAY_SECONDS)

    def kill(self) -> None:
        """As when its machine dies: SIGKILL to all of it at once; a step that is under way on a host goes on."""
        self.process.kill()
        for pid in self.own():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.wait(END_SECONDS)

    def terminate(self) -> None:
        """As a job scheduler cancels it."""
        self.process.terminate()

    def interrupt_twice(self) -> None:
        """Ctrl-C by an impatient person: once more as soon as the first one has been taken notice of."""
        os.killpg(self.process.pid, signal.SIGINT)
        wait_for("the first Ctrl-C to arrive", lambda: self._pending(signal.SIGINT), timeout=END_SECONDS, interval=0.01)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGINT)

    def _pending(self, number: signal.Signals) -> str | None:
        with suppress(OSError):
            status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
            masks = re.findall(r"^(?:Sig|Shd)Pnd:\s+([0-9a-f]+)$", status, re.MULTILINE)
            if any(int(mask, 16) & (1 << (number - 1)) for mask in masks):
                return f"pending: {masks}"
        return None


@dataclass
class Ground:
    """The pool, its broker's engine and the logs of the controllers."""

    stand: Stand
    engine: Engine
    logs: Path
    confirm_seconds: float = PLAY_SECONDS
    """After how long a guard fires."""
    grace_seconds: float = _GRACE_SECONDS
    """How late it may be, and how long workers may need until they consume again."""
    known: set[str] = field(default_factory=set)
    """Tasks that earlier faults have lost or made run twice."""
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _tasks: int = 0
    _controllers: list[Controller] = field(default_factory=list)

    # -- acting -----------------------------------------------------------------------------------------------------

    def build(self, kind: str = "") -> dict[str, Any]:
        """The variables of a release that is new."""
        number = next(self._numbers)
        return {"pool_version": f"{number}.0", "pool_source": {"directory": str(self.stand.build(str(number), kind))}}

    def _terms(self) -> dict[str, Any]:
        return {**VARIABLES, "pool_confirm_timeout": self.confirm_seconds}

    def start(self, playbook: str, *options: str, **variables: Any) -> Controller:
        """Start a playbook and return at once."""
        number = len(self._controllers) + 1
        log = self.logs / f"{number}-{playbook}.log"
        mark = f"{self.stand.folder.name}-{number}"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command(self.stand, playbook, *options, **{**self._terms(), **variables}),
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self.stand.folder,
                env={**self.stand.environment(), MARK: mark}, start_new_session=True,
            )  # fmt: skip
        self._controllers.append(Controller(process, log, mark))
        return self._controllers[-1]

    def play(self, playbook: str, *options: str, **variables: Any) -> Controller:
        """Run a playbook to its end."""
        controller = self.start(playbook, *options, **variables)
        controller.wait()
        return controller

    def require(self, playbook: str, *options: str, **variables: Any) -> Controller:
        """Run a playbook that has to end with 0."""
        played = self.play(playbook, *options, **variables)
        if played.wait() != 0:
            raise ToolError(f"{playbook} ended with {played.wait()}:\n{played.output[-6000:]}")
        return played

    @contextmanager
    def production(self) -> Iterator[None]:
        """Tasks come in as long as the block runs."""
        with Production(self.stand, self._tasks) as production:
            try:
                yield
            finally:
                production.stop()
                self._tasks = production.number

    # -- what is so -------------------------------------------------------------------------------------------------

    def host(self, name: str) -> Host:
        """The host's side of the pool."""
        return Host(str(self.stand.root(name)), by="person")

    def journal(self, name: str) -> Path:
        """The host's journal."""
        return self.host(name).layout.journal

    def events(self, name: str, after: int = 0) -> list[dict[str, Any]]:
        """The host's events but the first ``after``."""
        return self.host(name).journal.read()[0][after:]

    def lengths(self) -> dict[str, int]:
        """How many events each host has."""
        return {name: len(self.events(name)) for name in HOSTS}

    def current(self) -> str:
        """The release that every host is settled on.

        :raises ToolError: there is none.
        """
        found = {self.host(name).state().current for name in HOSTS}
        if len(found) != 1 or None in found:
            raise ToolError(f"The hosts are on {sorted(map(str, found))}.")
        return str(found.pop())

    def unsettled(self, name: str) -> str | None:
        """What is still to happen on a host; None once it runs one release alone, as a whole, with nothing open."""
        host = self.host(name)
        state = host.state()
        if state.rollout and state.rollout.open:
            return f"{name}: rollout {state.rollout.token} is {state.rollout.phase}"
        seen = look(self.stand, name)
        if not state.current or not seen.runs_only(state.current, PROCESSES):
            return f"{name} is on {state.current} and runs {seen.releases or 'nothing'}, configs {len(seen.configs)}"
        enabled = [release for release in state.releases if host.supervisor.enabled(release)]
        return None if enabled == [state.current] else f"{name} is on {state.current} and would boot {enabled}"

    def wait_settled(self, seconds: float) -> None:
        """Wait until no host is between two releases.

        :raises ToolError: says which one is, and how.
        """

        def between() -> str | None:
            return next(filter(None, map(self.unsettled, HOSTS)), None)

        wait_for("every host to be settled", between, timeout=seconds)

    def complaints(self) -> list[str]:
        """What ``bin/backstep verify`` finds, by host."""
        found = []
        for name in HOSTS:
            program = str(self.host(name).layout.program)
            done = subprocess.run([program, "verify"], capture_output=True, text=True, check=False, timeout=END_SECONDS)
            found += [f"{name}: {done.stdout}{done.stderr}"] if done.returncode else []
        return found

    def worked(self) -> set[str]:
        """The releases that are good on some host."""
        return {release for name in HOSTS for release in self.host(name).state().good_releases()}

    def finished(self) -> Mapping[str, int]:
        """How many tasks each worker has finished."""
        return {worker.name: worker.finished for worker in self.engine.workers()}

    def take_balance(self) -> Balance:
        """Let the workers finish what they can reach, and count."""

        def unfinished() -> str | None:
            state = self.engine.queue_states([QUEUE])[0]
            # What a stopped worker had popped is listed, and in nobody's reach until a recovery run.
            is_next = state.oldest_waiting_seconds is not None
            return str(state) if is_next or state.executing or state.scheduled else None

        wait_for("the workers to finish what they can reach", unfinished, timeout=REST_SECONDS)
        announced = set().union(*(controller.announced for controller in self._controllers))
        return balance(self.engine, self.stand.ledger_url, [QUEUE], announced)

    def end(self) -> None:
        """No controller outlives the ground."""
        for controller in self._controllers:
            controller.kill()


@contextmanager
def a_ground(logs: Path) -> Iterator[Ground]:
    """A pool on its second good release, at rest."""
    with ExitStack() as parts:
        stand = parts.enter_context(a_stand())
        engine = parts.enter_context(open_engine("rq", stand.broker_url, 5.0))
        ground = Ground(stand, engine, logs)
        parts.callback(ground.end)
        ground.require("deploy", **ground.build())
        began = time.monotonic()
        # A second one: the next that is confirmed has something to prune.
        ground.require("deploy", **ground.build())
        took = time.monotonic() - began
        ground.confirm_seconds = round(max(_CONFIRM_SECONDS, _CONFIRM_DEPLOYS * took))
        ground.grace_seconds = max(_GRACE_SECONDS, took)
        yield ground


class Consuming:
    """Since a fault: when workers of a good release finished a task on every host."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._before = dict(ground.finished())
        self._began = time.monotonic()
        self._hosts: set[str] = set()
        self.seconds: float | None = None

    def look(self) -> None:
        """Look now."""
        if self.seconds is not None:
            return
        good = self._ground.worked()
        for name, count in self._ground.finished().items():
            _pool, release, host, *_rest = name.split("/")
            if release in good and count > self._before.get(name, 0):
                self._hosts.add(host)
        if self._hosts >= set(HOSTS):
            self.seconds = round(time.monotonic() - self._began, 1)
