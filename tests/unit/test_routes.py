# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Routes: what they are called, whose they are, and which share of the task starts a version has got."""

from __future__ import annotations

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._queue.engines.dramatiq_rabbitmq import (
    DramatiqRabbitmqEngine,
)
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import (
    BadInput,
    BrokerRefused,
    RouteRefused,
)
from ansible_collections.backstep.workers.plugins.module_utils._rollout.ids import is_of_version, release_id
from ansible_collections.backstep.workers.plugins.module_utils._rollout.routes import (
    Route,
    Starts,
    effective,
    is_tagged,
    parse,
    require_own,
    route_of,
    tagged_queue,
    with_tagged,
)


def route(queue: str = "mail", share: float = 25.0, by: str = "ana") -> Route:
    return route_of(queue, "2.0", share, ["b", "a", "a"], by, 1000.0, 60)


def test_a_tagged_queue_has_a_name_that_every_engine_takes() -> None:
    assert tagged_queue("mail", "2.4.0") == "mail.for-2.4.0"
    assert tagged_queue("mail", "2.4.0+build/7") == "mail.for-2.4.0_build_7"
    assert is_tagged("mail.for-2.4.0")
    assert not is_tagged("mail")


def test_workers_listen_to_the_tagged_queue_before_the_plain_one() -> None:
    assert with_tagged([["a", "b"], ["c"]], "1", apart=False) == [
        ["a.for-1", "a", "b.for-1", "b"], ["c.for-1", "c"]
    ]  # fmt: skip
    assert with_tagged([["a", "b"], ["c"]], "1", apart=True) == [
        ["a.for-1", "a", "b.for-1", "b"], ["c.for-1"], ["c"]
    ]  # fmt: skip


def test_a_route_is_read_as_it_was_written() -> None:
    meant = route()
    assert (meant.to, meant.tasks, meant.until) == ("mail.for-2.0", ("a", "b"), 1060.0)
    assert parse({"mail": meant.line}) == {"mail": meant}


@pytest.mark.parametrize("line", ["", "[]", "{}", '{"to": "x"}', route().line.replace('"by"', '"buy"')])
def test_a_line_that_cannot_be_read_is_no_route(line: str) -> None:
    with pytest.raises(BrokerRefused):
        parse({"mail": line})


@pytest.mark.parametrize(
    ("queue", "version", "share", "by", "seconds"),
    [
        ("mail.for-1.0", "2.0", 25.0, "ana", 60),
        ("mail", "", 25.0, "ana", 60),
        ("mail", "2.0", 0.0, "ana", 60),
        ("mail", "2.0", 100.5, "ana", 60),
        ("mail", "2.0", 25.0, "", 60),
        ("mail", "2.0", 25.0, "ana", 0),
    ],
)
def test_what_can_be_no_route_is_refused(queue: str, version: str, share: float, by: str, seconds: int) -> None:
    with pytest.raises(BadInput):
        route_of(queue, version, share, [], by, 1000.0, seconds)


def test_a_route_is_its_owners_until_it_is_over() -> None:
    require_own([route()], "ana", 1059.0)
    require_own([route()], "bo", 1060.0)
    with pytest.raises(RouteRefused) as refused:
        require_own([route()], "bo", 1059.0)
    assert refused.value.details["owner"] == "ana"


def test_the_effective_share_is_what_was_begun_meanwhile() -> None:
    before = {"w1": Starts("1.0-aa", 100), "w2": Starts("2.0-bb", 0)}
    after = {"w1": Starts("1.0-aa", 130), "w2": Starts("2.0-bb", 7), "w3": Starts("2.0-bb", 3)}
    assert effective(before, after, "2.0") == {"releases": {"1.0-aa": 30, "2.0-bb": 10}, "share": 25.0}
    assert effective(before, after, "3.0")["share"] == 0.0


def test_no_share_is_told_where_it_would_be_a_guess() -> None:
    few = {"w1": Starts("1.0-aa", 15), "w2": Starts("2.0-bb", 4)}
    assert effective({}, few, "2.0") == {"releases": {"1.0-aa": 15, "2.0-bb": 4}, "share": None}
    gone = {"w0": Starts("1.0-aa", 3)}
    assert effective(gone, {"w1": Starts("1.0-aa", 50)}, "2.0") == {"releases": {"1.0-aa": 50}, "share": None}


@pytest.mark.parametrize("version", ["2.4.0", "2.4.0+7", "2.4.0-rc1"])
def test_a_release_is_of_its_version(version: str) -> None:
    assert is_of_version(release_id(version, {}), version)
    assert not is_of_version(release_id(version + ".1", {}), version)


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ('{"queue_name":"a.for-1","args":[],"n":1e400}', '{"queue_name":"a","args":[],"n":1e400}'),
        ('{"b": {"queue_name": "a.for-1"}, "queue_name" : "a.for-1.DQ"}', None),
        ('{"queue_name":"other"}', '{"queue_name":"other"}'),
        ('{"args":[]}', '{"args":[]}'),
        ("no JSON", "no JSON"),
    ],
)
def test_only_the_name_of_its_queue_changes_in_a_message(body: str, wanted: str | None) -> None:
    wanted = wanted or '{"b": {"queue_name": "a.for-1"}, "queue_name" : "a.DQ"}'
    assert DramatiqRabbitmqEngine.messages.renamed((None, None, body.encode()), "a.for-1", "a") == wanted.encode()
