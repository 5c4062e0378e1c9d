# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host that is down stops a deploy by name; left out on purpose, it is named until it has been taken along."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.demo.playbooks import Played, play
from tests.demo.stand import Stand, a_stand

HEALTH = {"bake": 1, "canary_timeout": 20}
Play = Callable[..., Played]


@pytest.fixture
def stand() -> Iterator[Stand]:
    """Three hosts."""
    with a_stand() as stand:
        yield stand


@pytest.fixture
def deploy(stand: Stand, tmp_path: Path) -> Play:
    """Deploys a version."""
    code = stand.build("app")

    def run(version: str, playbook: str = "deploy", **variables: Any) -> Played:
        given = {"pool_version": version, "pool_source": {"directory": str(code)}, "pool_health": HEALTH}
        return play(stand, tmp_path, "play", playbook, **given, pool_waves=["100%"], **variables)

    return run


def cut_off(stand: Stand, host: str) -> str:
    """Have a host be out of the controller's reach; the inventory as it was."""
    before = stand.inventory.read_text(encoding="utf-8")
    inventory = json.loads(before)
    no_route = stand.folder / "no-route"
    no_route.write_text("#!/bin/sh\necho 'No route to host' >&2\nexit 255\n", encoding="ascii")
    no_route.chmod(0o755)
    unreachable = {"ansible_connection": "ssh", "ansible_ssh_executable": str(no_route)}
    inventory["all"]["children"]["workers"]["hosts"][host] = unreachable
    stand.inventory.write_text(json.dumps(inventory), encoding="utf-8")
    return before


@pytest.mark.thorough
def test_a_host_that_is_down_is_left_out_on_purpose_and_named_until_it_is_taken_along(
    stand: Stand, deploy: Play
) -> None:
    assert deploy("1.0").status == 0
    inventory = cut_off(stand, "w3")

    refused = deploy("2.0")
    assert refused.status != 0
    assert "w3: unreachable" in refused.output
    assert "The rollout was not begun" in refused.output

    partly = deploy("2.0", pool_skip=["w3"])
    assert partly.status == 0, partly.output
    assert "left out on purpose: w3" in partly.output
    assert "w3" not in partly.changed or partly.changed["w3"] == 0
    status = deploy("2.0", "status")
    assert status.status != 0, "a host did not answer"
    assert "on purpose: w3" in status.output

    stand.inventory.write_text(inventory, encoding="utf-8")
    status = deploy("2.0", "status")
    assert status.status == 0
    assert "! mixed: 1.0-" in status.output
    assert "on purpose: w3" in status.output

    assert deploy("2.0").status == 0
    status = deploy("2.0", "status")
    assert "mixed" not in status.output
    assert "on purpose" not in status.output
