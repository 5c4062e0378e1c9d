# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Notifications to a real receiver: one that refuses at first, one that never answers; whose journals keep them."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._host.info import describe_host
from ansible_collections.backstep.workers.plugins.module_utils._rollout import notices

from tests.demo.playbooks import command
from tests.demo.stand import HOSTS, Stand, a_stand
from tests.integration.local_pool import LocalPool
from tests.support.servers import wait_for

SECRET, TOKEN = "hush-in-the-path", "hush-in-the-header"
_SECONDS = 90.0


@dataclass
class Receiver:
    """What was asked, in its order, with the journal of the first host at that moment; how it answers."""

    journal: Path
    status: int = 503
    asked: list[tuple[str, dict[str, Any], list[str]]] = field(default_factory=list)
    goes_on: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    def of(self, path: str) -> list[dict[str, Any]]:
        """What one place was told."""
        return [body for where, body, _events in self.asked if path in where]


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    """Three hosts."""
    with a_stand() as stand:
        yield stand


@pytest.fixture
def receiver(stand: Stand) -> Iterator[Receiver]:
    """A webhook's server: below /slow it gives no answer."""
    found = Receiver(stand.root(HOSTS[0]) / "state" / "journal.jsonl")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.headers["Authorization"] == TOKEN
            events = [json.loads(line)["event"] for line in found.journal.read_text(encoding="utf-8").splitlines()]
            found.asked.append((self.path, body, events))
            if "/slow" in self.path:
                found.goes_on.wait(_SECONDS)
            self.send_response(found.status)
            self.end_headers()

        def log_message(self, *_words: Any) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        found.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield found
        finally:
            found.goes_on.set()
            server.shutdown()
            thread.join(_SECONDS)


def hook(receiver: Receiver, name: str, **more: Any) -> dict[str, Any]:
    args = {
        "url": f"http://127.0.0.1:{receiver.port}/{name}/{SECRET}",
        "method": "POST",
        "headers": {"Authorization": TOKEN},
        "body_format": "json",
        "body": "{{ pool_event }}",
        "status_code": 200,
    }
    return {"name": name, "module": "ansible.builtin.uri", "args": args, **more}


def play(
    stand: Stand, playbook: str, notify: list[dict[str, Any]], **variables: Any
) -> subprocess.CompletedProcess[str]:
    """As a person would, with ``-v``."""
    given = stand.folder / "notify.yml"
    given.write_text(json.dumps({"pool_notify": notify}), encoding="utf-8")
    return subprocess.run(
        command(stand, playbook, "-v", "-e", f"@{given}", **variables),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=stand.folder,
        env={**stand.environment(), "ANSIBLE_SHOW_CUSTOM_STATS": "true"},
        timeout=_SECONDS, check=False,
    )  # fmt: skip


def lines_of(told: subprocess.CompletedProcess[str]) -> list[str]:
    """What a run has said of notifications; it went well."""
    assert told.returncode == 0, told.stdout + told.stderr
    return [line.strip() for line in told.stdout.splitlines() if line.strip().startswith("notification")]


def word_of(told: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What a run has left for whatever comes next, but for what is another one each time."""
    (left,) = re.findall(r"RUN: (\{.*\})", told.stdout)
    word: dict[str, Any] = json.loads(left)["backstep"]
    assert word.pop("now") == word.pop("to")
    assert word.pop("pool") == "letters"
    assert word.pop("ended") > 0
    return word


def test_what_is_refused_is_sent_again_by_a_later_run_and_holds_up_nothing(
    stand: Stand, receiver: Receiver, tmp_path: Path
) -> None:
    deploy: dict[str, Any] = {"pool_version": "1", "pool_source": {"directory": str(stand.build("app"))}}
    deploy |= {"pool_health": {"bake": 1, "canary_timeout": 20}, "pool_waves": ["100%"]}
    notify = [
        hook(receiver, "chat"),
        hook(receiver, "slow", timeout=2),
        hook(receiver, "never", about=["went_back"]),
        {"name": "broken", "module": "no.such.module", "args": {"url": SECRET}},
        {
            "name": "file",
            "module": "ansible.builtin.lineinfile",
            "args": {"path": str(tmp_path / "told"), "line": "{{ pool_event.what }}", "create": True, "mode": "0600"},
        },
    ]
    told = play(stand, "deploy", notify, **deploy)
    assert word_of(told) == {"schema": 1, "rollout": 1, "what": "deployed", "from": "nothing", "ok": True, "report": ""}
    sent, failed = lines_of(told)
    assert sent == "notification letters-1: sent to file"
    assert failed.startswith("notification letters-1: NOT sent, and any later run sends it again (9 more tries). ")
    assert "chat: Status code was 503" in failed
    assert "slow: no answer within 2 s" in failed
    assert "broken: " in failed
    (first,) = receiver.of("/chat")
    assert (first["id"], first["what"], first["from"], first["again"]) == ("letters-1", "deployed", "nothing", False)
    assert (first["hosts"], first["verdict"], first["to"]) == (list(HOSTS), "good", first["now"])
    assert "lease_released" in receiver.asked[0][2], "the leases were given back before"
    assert not receiver.of("/never")
    assert (tmp_path / "told").read_text(encoding="utf-8") == "deployed\n"

    receiver.status = 200
    receiver.goes_on.set()
    again = play(stand, "status", notify[:2])
    waits, sent = lines_of(again)
    assert "is not sent yet to broken, chat, slow, after 1 of 10 tries" in waits
    assert sent == "notification letters-1: sent to chat, slow"
    assert [(body["id"], body["again"]) for body in receiver.of("/chat")] == [("letters-1", False), ("letters-1", True)]
    count = len(receiver.asked)
    third = play(stand, "status", notify)
    assert (lines_of(third), len(receiver.asked)) == ([], count), "nothing is sent that was sent"
    for done in (told, again, third):
        assert not {word for word in (SECRET, TOKEN) if word in done.stdout + done.stderr}
    for host in HOSTS:
        journal = (stand.root(host) / "state" / "journal.jsonl").read_text(encoding="utf-8")
        assert {word for word in ("notified", SECRET, TOKEN) if word in journal} == {"notified"}


def told_of(pool: LocalPool, later: float) -> dict[str, Any] | None:
    """What a run would tell that comes so many seconds later."""
    state = describe_host(pool.open())
    return notices.event_from_journals(pool.name, {pool.at.name: {**state, "clock": state["clock"] + later}})


def test_a_rollout_whose_run_has_died_is_told_of_from_the_journal(pool: LocalPool) -> None:
    first = pool.deploy("1.0")
    assert told_of(pool, 0.0) is None, "its own run may be about to"
    event = told_of(pool, 200.0)
    assert event is not None
    assert (event["what"], event["from"], event["to"], event["now"]) == ("deployed", "nothing", first, first)
    assert told_of(pool, notices.SECONDS_AT_MOST + 200.0) is None, "nobody wants to hear of it any more"

    pool.lease(seconds=1.0)
    second = pool.stage("2.0")
    pool.switch(second, confirm_seconds=1.0)
    wait_for("the guard has taken it back", lambda: "rolled_back" in pool.events())
    wait_for("the lease has run out", lambda: describe_host(pool.open())["lease"] is None)
    event = told_of(pool, 200.0)
    assert event is not None
    assert (event["what"], event["from"], event["to"], event["now"]) == ("went_back", first, second, first)
    assert "guard" in event["reason"]
    assert event["id"] == f"{pool.name}-{pool.token}"

    pool.lease()
    third = pool.stage("3.0")
    pool.switch(third)
    assert told_of(pool, 200.0) is None, "it is not over"
    pool.back()
    pool.confirm(first)
    assert told_of(pool, 200.0) is None, "a run is at work"
    pool.end()
    event = told_of(pool, 200.0)
    assert event is not None
    assert (event["what"], event["to"]) == ("went_back", third)
