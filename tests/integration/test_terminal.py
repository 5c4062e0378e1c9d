# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The output of backstep.workers.terminal: each step once however many hosts take it, and failures as sentences."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.demo.playbooks import play
from tests.demo.stand import Stand, a_stand

# What Ansible's own output is full of.
ROUTINE = ("TASK [", "ok: [", "changed: [", "skipping: [", "included:", "fatal:", "Origin:")
GOOD = {"pool_version": "1.0", "pool_waves": ["100%"], "pool_health": {"bake": 1, "canary_timeout": 20}}


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    """Three hosts."""
    with a_stand() as stand:
        yield stand


@pytest.fixture(autouse=True)
def callback(stand: Stand) -> None:
    """As a person sets it."""
    stand.settings.clear()
    stand.settings["ANSIBLE_STDOUT_CALLBACK"] = "backstep.workers.terminal"


def routine(output: str) -> list[str]:
    """The lines that are Ansible's own."""
    return [line for line in output.splitlines() if line.startswith(ROUTINE)]


def test_a_deploy_is_a_line_for_each_step_and_says_that_nothing_has_failed(stand: Stand, tmp_path: Path) -> None:
    played = play(stand, tmp_path, "deploy", "deploy", pool_source={"directory": str(stand.build("good"))}, **GOOD)
    lines = played.output.splitlines()
    assert played.status == 0
    assert routine(played.output) == []
    once = ("Stage the release", "Switch wave 1 of 1", "Watch wave 1 of 1", "Give the lease back and read the journal")
    assert [lines.count(f"  {step}") for step in once] == [1, 1, 1, 1]
    # Hosts that have given theirs with the lease aren't asked for it again.
    assert "  Read the journal" not in lines
    assert lines[-1 if lines[-1] else -2] == "3 hosts, nothing has failed."


def test_a_refusal_is_one_sentence_for_all_hosts(stand: Stand, tmp_path: Path) -> None:
    played = play(stand, tmp_path, "refused", "deploy", pool_source={"directory": "/nowhere"}, **GOOD)
    assert played.status != 0
    assert routine(played.output) == []
    assert sum(line.startswith("failed:") for line in played.output.splitlines()) == 1
    assert "Traceback" not in played.output
    assert played.output.rstrip().endswith("This run has failed, as is said above.")


def test_with_v_everything_is_shown(stand: Stand, tmp_path: Path) -> None:
    stand.settings["ANSIBLE_VERBOSITY"] = "1"
    played = play(stand, tmp_path, "status", "status")
    assert played.status == 0
    assert any(line.startswith("TASK [backstep.workers.pool : Ask the broker") for line in routine(played.output))
    assert "ok=" in played.output


def test_the_steps_are_said_too_where_another_callback_shows_it(stand: Stand, tmp_path: Path) -> None:
    # As ansible-runner sets it, whose own callback inherits from the one that was asked for.
    stand.settings["ANSIBLE_STDOUT_CALLBACK"] = "default"
    assert "\n  Ask the broker\n" not in play(stand, tmp_path, "status", "status").output
    stand.settings["ORIGINAL_STDOUT_CALLBACK"] = "backstep.workers.terminal"
    assert "\n  Ask the broker\n" in play(stand, tmp_path, "status", "status").output
