# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a host reaches a broker: by each kind of URL, and within seconds."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._host.reaching import _places, why_unreachable

from tests.support.servers import free_port


@pytest.fixture
def port() -> Iterator[int]:
    """Where somebody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    ("url", "places"),
    [
        ("redis://ana:p%40ss@h1/0", [("h1", 6379)]),
        ("rediss://h1:7000", [("h1", 7000)]),
        ("redis://[fe80::1]/0", [("fe80::1", 6379)]),
        ("redis://[fe80::1]:7000/0?x=y@z", [("fe80::1", 7000)]),
        ("redis+sentinel://:pw@h1:26380,h2/mymaster/0?sentinel_password=a@b", [("h1", 26380), ("h2", 26379)]),
        ("redis+cluster://:pw@h1:7000,h2/?prefix={bull}", [("h1", 7000), ("h2", 6379)]),
        ("amqp://ana:pw@h1/a%2Fb", [("h1", 5672)]),
        ("amqps://h1", [("h1", 5671)]),
        ("unix:///run/redis.sock?db=1", [("/run/redis.sock", 0)]),
        ("kafka://h1", []),
    ],
)
def test_a_url_says_where_to_knock(url: str, places: list[tuple[str, int]]) -> None:
    assert _places(url) == places


def test_one_server_that_listens_is_enough(port: int) -> None:
    assert why_unreachable(f"redis://127.0.0.1:{port}/0") == ""
    assert why_unreachable(f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{port}/") == ""
    assert why_unreachable("kafka://h1") == ""  # it can't be told


def test_what_is_said_instead_is_told_without_the_password() -> None:
    port = free_port()
    assert why_unreachable(f"redis://:s3cret@127.0.0.1:{port}/0") == f"127.0.0.1:{port}: Connection refused"
    assert "s3cret" not in why_unreachable("amqp://ana:s3cret@no-such-host.invalid/")


def test_a_socket_in_the_file_system_is_tried_too(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    assert "No such file" in why_unreachable(f"unix://:s3cret@{path}")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        assert why_unreachable(f"unix://{path}") == ""
