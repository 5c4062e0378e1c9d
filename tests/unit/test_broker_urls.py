# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""URLs of brokers: of a Redis under Sentinel or a cluster what they say, which are refused, and no password shown."""

from __future__ import annotations

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import open_engine
from ansible_collections.backstep.workers.plugins.module_utils._queue.url import (
    check_url,
    clustered,
    for_workers,
    in_words,
    watched,
    without_secrets,
)
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BadInput
from ansible_collections.backstep.workers.plugins.module_utils._rollout.masking import hide, mask, scrub

SCHEMES = ("redis", "redis+sentinel", "rediss+sentinel")
FULL = (
    "rediss+sentinel://ana:p%40ss%2Cw0rd@h1:26380,[fe80::1]:26381,h3/mymaster/4"
    "?sentinel_username=eve&sentinel_password=wa%2Btch&ssl_ca_certs=/etc/ca.pem"
)


def test_a_url_says_everything_of_redis_and_of_its_sentinels() -> None:
    found = watched(check_url(FULL, SCHEMES))
    assert found is not None
    assert found.sentinels == (("h1", 26380), ("fe80::1", 26381), ("h3", 26379))
    assert (found.name, found.username, found.password) == ("mymaster", "eve", "wa+tch")
    assert found.server == "rediss://ana:p%40ss%2Cw0rd@sentinel/4?ssl_ca_certs=%2Fetc%2Fca.pem"


def test_what_is_left_out_is_left_to_redis() -> None:
    found = watched("redis+sentinel://h1/mymaster")
    assert found is not None
    assert (found.sentinels, found.server) == ((("h1", 26379),), "redis://sentinel/")
    assert (found.username, found.password) == (None, None)


def test_another_url_is_none_of_sentinel() -> None:
    assert watched("redis://:pw@h1:6379/0") is None


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis+sentinel://:secret@h1:26379", "how the sentinels call the Redis"),
        ("redis+sentinel://:secret@h1:26379/?x=y", "how the sentinels call the Redis"),
        ("redis+sentinel://:secret@/mymaster", "names no sentinel"),
        ("redis+sentinel://:secret@h1,/mymaster", "names no sentinel"),
        ("redis+sentinel://:secret@h1:0/mymaster", "'h1:0' is no place"),
        ("redis+sentinel://:secret@h1:99999/mymaster", "'h1:99999' is no place"),
        ("redis+sentinel://:secret@h1;h2/mymaster/zero", "'zero' is no database number"),
        ("redis+sentinel://:secret@h1/mymaster/0/1", "is no database number"),
        ("sentinel://:secret@h1:26379/0", "begin with one of"),
    ],
)
def test_a_url_that_names_no_redis_under_sentinel_is_refused(url: str, why: str) -> None:
    with pytest.raises(BadInput, match=why) as refused:
        check_url(url, SCHEMES)
    assert "secret" not in str(refused.value.result())


def test_a_broker_is_known_without_any_user_or_password() -> None:
    assert without_secrets(FULL) == "rediss+sentinel://h1:26380,[fe80::1]:26381,h3/mymaster/4"
    assert in_words(FULL) == "rediss+sentinel at h1:26380,[fe80::1]:26381,h3/mymaster/4"
    assert without_secrets("redis+sentinel://h1,h2/mymaster") == "redis+sentinel://h1,h2/mymaster"


@pytest.mark.parametrize("show", [mask, lambda url: scrub(f"failed: {url}", url), lambda url: hide(f"at {url}", [])])
def test_no_password_is_shown_wherever_it_stands(show: object) -> None:
    assert callable(show)
    shown = show(FULL)
    for secret in ("p%40ss", "w0rd", "wa%2Btch", "wa+tch"):
        assert secret not in shown
    assert "h1:26380" in shown


@pytest.mark.parametrize("said", ["p@ss,w0rd", "p%40ss%2Cw0rd", "wa+tch", "wa%2Btch"])
def test_no_message_shows_one_in_any_spelling(said: str) -> None:
    assert scrub(f"the server said: {said}!", FULL) == "the server said: ***!"


def test_the_passwords_of_celerys_several_urls_are_each_hidden() -> None:
    url = "sentinel://:hush-1@h1:26379/0;sentinel://:hush-2@h2:26379/0"
    assert hide("AUTH hush-1, AUTH hush-2", [url]) == "AUTH ***, AUTH ***"
    assert "hush" not in mask(url)


CLUSTER = "rediss+cluster://ana:s3cret@h1:7000,[fe80::1]:7001,h3/?prefix={bull}&ssl_ca_certs=/etc/ca.pem"


def test_a_url_says_everything_of_the_nodes_of_a_cluster() -> None:
    found = clustered(check_url(CLUSTER, ("rediss+cluster",)))
    assert found is not None
    assert found.nodes == (("h1", 7000), ("fe80::1", 7001), ("h3", 6379))
    assert found.server == "rediss://ana:s3cret@node/0?prefix={bull}&ssl_ca_certs=/etc/ca.pem"
    assert clustered("redis://:pw@h1:6379/0") is None
    assert without_secrets(CLUSTER) == "rediss+cluster://h1:7000,[fe80::1]:7001,h3/"
    assert "s3cret" not in mask(CLUSTER) + scrub(f"failed: {CLUSTER}", CLUSTER)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis+cluster://:secret@/", "names no node"),
        ("redis+cluster://:secret@h1,", "names no node"),
        ("redis+cluster://:secret@h1:0", "'h1:0' is no place of a node"),
        ("redis+cluster://:secret@h1/0", "no databases to choose from"),
    ],
)
def test_a_url_that_names_no_cluster_is_refused(url: str, why: str) -> None:
    with pytest.raises(BadInput, match=why) as refused:
        check_url(url, ("redis+cluster",))
    assert "secret" not in str(refused.value.result())


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (CLUSTER, "rediss+cluster://ana:s3cret@h1:7000,[fe80::1]:7001,h3/?ssl_ca_certs=%2Fetc%2Fca.pem"),
        ("amqp://ana:s3cret@rabbit/mail?management=https://rabbit", "amqp://ana:s3cret@rabbit/mail"),
        ("amqps://rabbit", "amqps://rabbit"),
        ("redis://h1/0?protocol=3", "redis://h1/0?protocol=3"),
        (FULL, FULL),
    ],
)
def test_workers_are_told_what_their_clients_know(url: str, told: str) -> None:
    assert for_workers(url) == told


@pytest.mark.parametrize(
    ("engine", "url", "other"),
    [
        ("celery", "amqp://ana:s3cret@rabbit/mail", "celery_rabbitmq"),
        ("dramatiq", "AMQPS://ana:s3cret@rabbit", "dramatiq_rabbitmq"),
        ("celery_rabbitmq", "redis://:s3cret@h1/0", "celery"),
        ("dramatiq_rabbitmq", "rediss+sentinel://:s3cret@h1/m/0", "dramatiq"),
    ],
)
def test_a_url_of_the_library_s_other_broker_is_refused_with_its_engine(engine: str, url: str, other: str) -> None:
    with pytest.raises(BadInput) as refused:
        open_engine(engine, url, 1.0)
    assert refused.value.next_step.endswith(f"to {other}.")
    assert "s3cret" not in str(refused.value.result())
