# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Task names without loading payloads, broker URLs without passwords, engines by name."""

from __future__ import annotations

import json
import os
import pickle
import zlib
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._queue.engines._rq_payload import (
    from_time,
    name_in_description,
    name_in_payload,
    to_time,
)
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import ENGINES, open_engine
from ansible_collections.backstep.workers.plugins.module_utils._queue.url import check_url
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BadInput
from ansible_collections.backstep.workers.plugins.module_utils._rollout.masking import mask, scrub
from hypothesis import given
from hypothesis import strategies as st


class Trap:
    """Loading it would make a folder; reading its opcodes must not."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_name_is_read_from_a_pickle_that_is_not_loaded(protocol: int, tmp_path: Any) -> None:
    trap = Trap(str(tmp_path / "sprung"))
    data = zlib.compress(pickle.dumps(("app.tasks.send", None, (trap,), {}), protocol=protocol))
    assert name_in_payload(data) == "app.tasks.send"
    assert not (tmp_path / "sprung").exists()


def test_a_name_is_read_from_json_and_from_uncompressed_payloads() -> None:
    as_json = json.dumps(["app.tasks.send", None, [1], {}]).encode()
    assert name_in_payload(zlib.compress(as_json)) == "app.tasks.send"
    assert name_in_payload(as_json) == "app.tasks.send"
    assert name_in_payload(pickle.dumps(("app.tasks.send", None, (), {}))) == "app.tasks.send"


def test_the_head_of_a_huge_payload_is_enough() -> None:
    data = zlib.compress(pickle.dumps(("app.tasks.send", None, (b"x" * 5_000_000,), {})))
    assert name_in_payload(data) == "app.tasks.send"


@given(st.binary(max_size=200))
def test_a_damaged_payload_is_an_unknown_name_not_an_error(data: bytes) -> None:
    assert name_in_payload(data) is None or isinstance(name_in_payload(data), str)


@pytest.mark.parametrize(
    ("description", "name"),
    [
        ("app.tasks.send(1, to='x')", "app.tasks.send"),
        ("os.getpid()", "os.getpid"),
        ("Send the newsletter (urgent)", None),
        ("newsletter(urgent)", None),
        ("", None),
    ],
)
def test_a_description_of_the_apps_own_is_no_name(description: str, name: str | None) -> None:
    assert name_in_description(description) == name


def test_times_are_read_as_written() -> None:
    assert from_time(to_time(1795243024.25)) == 1795243024.25
    assert from_time("") is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:s3cret@h:6379/0", "redis://:***@h:6379/0"),
        ("rediss://ana:s3cret@h/1", "rediss://ana:***@h/1"),
        ("redis://ana:p@s:s/3cret@h:1/0", "redis://ana:***@h:1/0"),
        ("unix://ana:s3cret@/run/redis.sock?db=2", "unix://ana:***@/run/redis.sock?db=2"),
        ("redis://h/0?password=s3cret&db=1", "redis://h/0?password=***&db=1"),
        ("redis://h:6379/0", "redis://h:6379/0"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert mask(url) == shown
    assert "3cret" not in scrub(f"cannot connect to {url}", url)


@given(st.text(st.characters(categories=("L", "N")), min_size=6), st.text(max_size=20), st.text(max_size=20))
def test_no_message_shows_a_password(password: str, before: str, after: str) -> None:
    url = f"redis://ana:{password}@broker.example.org:6379/0"
    rest = scrub(f"{before}{password}{after}{url}", url)
    assert password not in rest.replace(before, "").replace(after, "")


def test_an_escaped_password_is_hidden_in_both_spellings() -> None:
    url = "redis://:s%40cret@h:1/0"
    assert scrub("s@cret s%40cret", url) == "*** ***"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("amqp://h", "has to begin with"),
        ("redis:///0", "names no host"),
        ("redis://h:x/0", "ort"),
        ("redis://h:6379/zero", "no database number"),
        ("unix://", "names no socket"),
        ("", "has to begin with"),
    ],
)
def test_a_url_that_can_be_no_broker_is_refused(url: str, why: str) -> None:
    with pytest.raises(BadInput, match=why):
        check_url(url, ("redis", "rediss", "unix"))


def test_a_refused_url_is_shown_without_its_password() -> None:
    with pytest.raises(BadInput) as refused:
        check_url("redis://ana:s3cret@h:x/0", ("redis",))
    assert "s3cret" not in str(refused.value)


def test_an_unknown_engine_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadInput, match=f"knows: {', '.join(sorted(ENGINES))}"):
        open_engine("sidekick", "redis://h", 1.0)
