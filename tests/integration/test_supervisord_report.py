# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a real host's journal tells a report of a way back: what was seen, and what of its config has changed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._host.info import describe_host
from ansible_collections.backstep.workers.plugins.module_utils._host.journal import Journal
from ansible_collections.backstep.workers.plugins.module_utils._host.leasing import give_back
from ansible_collections.backstep.workers.plugins.module_utils._host.way_back import guard
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import HostUnfit
from ansible_collections.backstep.workers.plugins.plugin_utils.report_journal import data_from_journals
from ansible_collections.backstep.workers.plugins.plugin_utils.report_markdown import markdown
from ansible_collections.backstep.workers.plugins.plugin_utils.report_page import page

from tests.integration.local_pool import LocalPool
from tests.support.reports import CARE, course

OLD_CONFIG = "[app]\nworkers = 2\npassword = hush-old\n"
NEW_CONFIG = "[app]\nworkers = 2\npassword = hush-new\nmode = fast\n"
SEEN: dict[str, Any] = {"course": course(), "care": CARE, "noticed": None}


def switched(pool: LocalPool) -> tuple[str, str]:
    """A pool in the middle of a rollout that changes the config; the release before and the new one."""
    old = pool.deploy("1.0", config=OLD_CONFIG, TOKEN="hush-one")
    pool.lease()
    new = pool.stage("2.0", config=NEW_CONFIG, TOKEN="hush-two")
    pool.switch(new)
    return old, new


def report(pool: LocalPool) -> dict[str, Any]:
    """What the journal alone makes of it; it holds no secret, whichever way it is set."""
    state = describe_host(pool.open(), events=200)
    data = data_from_journals(pool.name, {pool.at.name: {"pool_state": state}}, {}, None)
    said = [page(data), markdown(data), json.dumps(data), (pool.root / "state" / "journal.jsonl").read_text("utf-8")]
    assert not [text for text in said if "hush" in text]
    return data


def test_a_way_back_tells_what_of_the_config_has_changed(pool: LocalPool) -> None:
    old, new = switched(pool)
    pool.back()
    pool.confirm(old)
    give_back(pool.open(), pool.token, pool.owner, "", "", check_mode=False, observed=SEEN)
    data = report(pool)
    assert (data["course"], data["care"]) == (SEEN["course"], SEEN["care"])
    (told,) = data["config"]
    assert (told["left"], told["restored"], told["problem"]) == (new, old, "")
    assert told["changes"] == [
        {"file": "app.ini", "how": "changed", "added": 1, "removed": 2, "names": []},
        {"file": "environment", "how": "changed", "added": 1, "removed": 1, "names": ["TOKEN"]},
    ]
    shown = pool.program("diff", new, old)
    assert shown.returncode == 0
    assert "-password = hush-new" in shown.stdout, "on the host itself, for whoever may read it"
    assert pool.program("diff", old, old).stdout == "They are the same.\n"
    refused = pool.program("diff", "9.9-nowhere0", old)
    assert (refused.returncode, "can't be used" in refused.stderr) == (1, True)


def test_the_guard_s_way_back_tells_it_too(pool: LocalPool) -> None:
    old, new = switched(pool)
    assert "Back on" in guard(pool.open(by="guard"), boot=True)
    data = report(pool)
    assert (data["ended"], data["course"], data["care"]) == ("rolled_back", None, None)
    assert [(one["left"], one["restored"], len(one["changes"])) for one in data["config"]] == [(new, old, 2)]


def test_a_config_that_can_t_be_read_keeps_no_host_from_going_back(pool: LocalPool) -> None:
    old, new = switched(pool)
    pool.back()
    config = pool.open().layout.config(new)
    config.rename(config.with_name("elsewhere"))
    pool.confirm(old)
    (told,) = report(pool)["config"]
    assert (told["changes"], "its config can't be read" in told["problem"]) == ([], True)


def test_a_deploy_that_is_good_restores_nothing(pool: LocalPool) -> None:
    pool.deploy("1.0", config=OLD_CONFIG)
    pool.deploy("2.0", config=NEW_CONFIG)
    assert report(pool)["config"] == []


def test_a_lease_is_given_back_though_nothing_more_can_be_noted(
    pool: LocalPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.lease()
    append = Journal.append

    def no_room_for_much(self: Journal, event: str, *given: Any, **data: Any) -> Any:
        if event == "observed":
            raise HostUnfit("No space.")
        return append(self, event, *given, **data)

    monkeypatch.setattr(Journal, "append", no_room_for_much)
    give_back(pool.open(), pool.token, pool.owner, "", "", check_mode=False, observed=SEEN)
    assert pool.events()[-1] == "lease_released"


def test_what_was_seen_is_noted_by_the_holder_of_the_lease_alone(pool: LocalPool) -> None:
    pool.lease()
    give_back(pool.open(), pool.token, {"run": "another"}, "", "", check_mode=False, observed=SEEN)
    give_back(pool.open(), pool.token, pool.owner, "", "", check_mode=True, observed=SEEN)
    assert "observed" not in pool.events()
