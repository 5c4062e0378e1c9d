# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What people read of a rollout after each wave and at its end, on one host and on a hundred, 80 columns wide."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.plugin_utils import text_end, typed

A, B = "1.0-aaaaaaaa", "2.0-bbbbbbbb"
WIDTH = 79


def entry(verdict: str = "good", reason: str = "") -> dict[str, Any]:
    return {"steps": {}, "verdict": verdict, "reason": reason}


def plan(hosts: list[str], kind: str = "deploy") -> dict[str, Any]:
    before, back = dict.fromkeys(hosts, A), dict.fromkeys(hosts, A)
    return {"kind": kind, "release": B, "hosts": hosts, "unfinished": [], "before": before, "back_to": back}


def record(entries: dict[str, dict[str, Any]], touched: list[str] | None = None) -> dict[str, Any]:
    return {"hosts": entries, "touched": list(entries) if touched is None else touched, "held": {}, "hooks": []}


def outcome(ended: str, hosts: dict[str, Any], exceptions: dict[str, str] | None = None) -> dict[str, Any]:
    return {"ended": ended, "hosts": hosts, "exceptions": exceptions or {}, "reasons": ""}


def command(playbook: str, **extra: Any) -> str:
    return typed.next_command({}, playbook, **extra)


def test_an_end_that_needs_a_person_names_the_exception_and_each_next_step() -> None:
    hosts = {"w1": entry(), "w2": entry("bad", "crashed")}
    found = outcome("mixed", {"w1": A, "w2": None}, {"w2": "go back: no route"})
    lines = text_end.end_lines("mail", plan(["w1", "w2"]), record(hosts), found, WIDTH)
    assert lines[0].startswith("Pool mail NEEDS A PERSON")
    assert lines[3] == "  w2    1.0-aaaaaaaa  not known     bad      crashed; go back: no route"
    assert text_end.next_lines(plan(["w1", "w2"]), record(hosts), found, command) == [
        "next: look:",
        "  ansible-playbook backstep.workers.status",
        "next: then take every host back:",
        "  ansible-playbook backstep.workers.rollback",
        "next: or without what gives no answer:",
        """  ansible-playbook backstep.workers.rollback -e '{"pool_skip": ["w2"]}'""",
    ]


def test_a_barrier_says_itself_what_comes_next() -> None:
    held = {**record({"w1": entry("bad")}), "held": {"w2": {"next": "cross it"}, "w1": {"next": "cross it"}}}
    found = outcome("mixed", {"w1": B}, {})
    assert text_end.next_lines(plan(["w1"]), held, found, command) == ["next: cross it"]


def test_a_host_that_was_not_touched_says_so() -> None:
    hosts = record({"w1": entry("bad", "crashed")}, ["w1"])
    lines = text_end.end_lines("mail", plan(["w1", "w2"]), hosts, outcome("rolled_back", {"w1": A, "w2": A}), WIDTH)
    assert lines[0] == f"Pool mail went back to {A}."
    assert lines[3].split() == ["w2", A, A, "-", "not", "touched"]


@pytest.mark.parametrize(
    ("ended", "kind", "said"),
    [
        ("deployed", "deploy", ["ansible-playbook backstep.workers.rollback"]),
        (
            "rolled_back", "deploy",
            [f"ansible-playbook backstep.workers.{rest}" for rest in ("deploy -e pool_version=...", "status")],
        ),
        ("rolled_back", "rollback", ["ansible-playbook backstep.workers.status"]),
        ("stopped", "deploy", ["ansible-playbook backstep.workers.deploy -e pool_version=2.0"]),
        ("superseded", "deploy", ["ansible-playbook backstep.workers.status"]),
    ],
)  # fmt: skip
def test_every_end_says_what_to_type(ended: str, kind: str, said: list[str]) -> None:
    lines = text_end.next_lines(plan(["w1"], kind), record({}), outcome(ended, {"w1": A}), command)
    assert [line.strip() for line in lines if not line.startswith("next: ")] == said


def test_a_long_reason_goes_on_in_its_column_and_no_word_of_it_is_cut() -> None:
    reason = "alive: worker 1 has died and was started again (see /srv/log/2.0-bbbbbbbb-1.log); and 1 more"
    hosts = record({"w1": entry("bad", reason)})
    lines = text_end.end_lines("mail", plan(["w1"]), hosts, outcome("rolled_back", {"w1": A}), WIDTH)
    column = lines[1].index("why")
    assert all(line[:column].strip() == "" for line in lines[3:])
    assert " ".join(line[column:].strip() for line in lines[2:]) == reason
    assert max(map(len, lines)) <= WIDTH


@pytest.mark.parametrize(
    ("host", "reason"),
    [("worker-001.production.eu-central-1.example.org", "crashed " * 20), ("w1", f"see /opt/{'x' * 30}/1.log")],
)
def test_a_reason_has_lines_of_its_own_where_there_is_no_room_for_it(host: str, reason: str) -> None:
    hosts = record({host: entry("bad", reason)})
    lines = text_end.end_lines("mail", plan([host]), hosts, outcome("rolled_back", {host: A}), 80)
    assert (lines[1].split()[-1], lines[2].split()[-1]) == ("verdict", "bad")
    assert " ".join(line.strip() for line in lines[3:]) == reason.strip()
    assert max(map(len, lines[3:])) <= 80


def test_a_hundred_hosts_are_few_lines_and_those_that_differ_have_their_names() -> None:
    names = [f"w{number:03}" for number in range(100)]
    entries = {name: entry() for name in names}
    entries["w042"] = entry("bad", "crashed")
    entries["w077"] = entry("unknown", "no answer")
    found = outcome("rolled_back", dict.fromkeys(names, A))
    lines = text_end.end_lines("mail", plan(names), record(entries), found, WIDTH)
    assert [line.split()[0] for line in lines[2:5]] == ["w042", "w077", "98"]
    assert "98 hosts" in lines[4]
    assert "w000, w001, w002" in " ".join(" ".join(lines[4:]).split())
    assert len(lines) <= 7
    assert max(map(len, lines)) <= WIDTH


def test_equal_reasons_are_one_though_each_names_workers_of_its_own_host() -> None:
    names = [f"w{number:03}" for number in range(20)]
    entries = {
        name: entry("bad", f"canary: mail/{B}/{name}/1/6{name}, mail/{B}/{name}/2/7 finished nothing in 10 s")
        for name in names
    }
    lines = text_end.end_lines(
        "mail", plan(names), record(entries), outcome("rolled_back", dict.fromkeys(names, A)), 200
    )
    assert "canary: workers finished nothing in 10 s" in lines[2]
    assert len(lines) == 3


def test_where_the_rollout_is_is_said_after_each_wave() -> None:
    waves = [["w1"], ["w2", "w3"]]
    good = record({name: entry() for name in ("w1", "w2", "w3")}, ["w1"])
    assert text_end.wave_lines(0, waves, ["w1", "w2", "w3"], good) == [
        "--> staging: good (w1, w2, w3); next: wave 1 of 2 (w1)"
    ]
    assert text_end.wave_lines(1, waves, ["w1"], good) == ["--> wave 1 of 2: good (w1); next: wave 2 of 2 (w2, w3)"]
    assert text_end.wave_lines(2, waves, ["w2", "w3"], good) == ["--> wave 2 of 2: good (w2, w3); next: confirmation"]
    assert text_end.wave_lines(2, waves, [], good) == [], "nobody took part: the wave was left out"


def test_a_wave_that_is_not_good_says_where_why_and_who_goes_back() -> None:
    names = [f"w{number}" for number in range(5)]
    bad = record({name: entry("bad", "crashed") for name in names})
    assert text_end.wave_lines(1, [names], names, bad) == [
        "--> wave 1 of 1: BAD on 5 of 5 hosts",
        "    w0: crashed",
        "    w1: crashed",
        "    w2: crashed",
        "    and 2 more; the table at the end has them all",
        "    next: every touched host goes back (w0, w1, w2, w3, w4)",
    ]
    unknown = record({"w1": entry("unknown", "no answer")}, [])
    assert text_end.wave_lines(0, [["w1"]], ["w1"], unknown)[0::2] == [
        "--> staging: UNKNOWN on 1 of 1 hosts", "    next: nothing is switched",
    ]  # fmt: skip


def test_check_mode_claims_nothing() -> None:
    assert text_end.check_line("mail", plan([])) == f"Check mode: nothing was changed. Pool mail would be on {B}."


PARSED = {
    "inventory": ("/srv/my hosts",), "subset": "eu", "become": True, "become_method": "sudo", "become_ask_pass": True,
    "vault_password_files": ("~/.vault",), "args": ("backstep.workers.deploy",),
    "extra_vars": (
        "@eu.yml", "pool_version=2.0 pool_hosts=mail", '{"pool_broker_url": "redis://:hush@r", "pool_root": "/srv/b"}',
    ),
}  # fmt: skip


def test_the_next_command_is_on_the_same_hosts_in_the_same_way_and_has_no_secret() -> None:
    found = typed.next_command(PARSED, "rollback")
    assert shlex.split(found) == [
        "ansible-playbook", "-i", "/srv/my hosts", "--limit", "eu", "--vault-password-file", "~/.vault", "-b", "-K",
        "backstep.workers.rollback", "-e", "@eu.yml", "-e", "pool_hosts=mail", "-e", "pool_root=/srv/b",
    ]  # fmt: skip
    assert "hush" not in found
    assert typed.not_repeated(PARSED) == ["pool_broker_url"]


def test_a_playbook_of_ones_own_deploys_again() -> None:
    parsed = {"args": ("site.yml",)}
    assert typed.next_command(parsed, "deploy", pool_version="2.0") == "ansible-playbook site.yml -e pool_version=2.0"
    assert typed.next_command(parsed, "rollback") == "ansible-playbook backstep.workers.rollback"


def test_awx_is_told_which_template() -> None:
    assert typed.next_template("rollback", pool_skip=["w2"]) == (
        'launch the job template that plays backstep.workers.rollback with pool_skip: ["w2"]'
    )
