# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The event source: transitions of health and no samples, from real files, also over a restart."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.backstep.workers.extensions.eda.plugins.event_source import pool_health as source
from ansible_collections.backstep.workers.extensions.eda.plugins.event_source.pool_health import BAD, GOOD, UNKNOWN
from ansible_collections.backstep.workers.plugins.plugin_utils import status_file

A, B = "1.0-aaaaaaaa", "2.0-bbbbbbbb"
QUEUE = {"waiting": 3, "workers": 2, "oldest_waiting_seconds": 1.0}
NOW = 1_795_230_000.0
_SECONDS = 10.0


def worker(index: int, pid: int = 7, **more: Any) -> dict[str, Any]:
    return {"index": index, "pid": pid, "restarts": 0, "uptime": 50.0, **more}


def host(release: str = B, *workers: dict[str, Any], **more: Any) -> dict[str, Any]:
    processes = list(workers) or [worker(1), worker(2)]
    return {"pool_state": {"current": release, "processes": processes, "rollout": None, "lease": None, **more}}


def status(at: float = NOW, broker: Any = None, **hosts: Any) -> dict[str, Any]:
    """What the status has, as the collection itself writes it."""
    told = {"queues": {"mail": QUEUE}} if broker is None else broker
    return status_file.status_data("mail", hosts or {"w1": host(), "w2": host()}, told, [], at)


def terms(folder: Path = Path("/nowhere"), **more: Any) -> source.Terms:
    return source.terms_of({"pool": "mail", "status_file": str(folder / "status.json"), **more})


def read(told: Any, **more: Any) -> source.Reading:
    reading = source.read(told, terms(**more), NOW)
    assert reading is not None
    return reading


DEAD = host(B, worker(1), worker(2, 0))
SILENT = {"unreachable": True, "msg": "no route"}


# -- what a status says ---------------------------------------------------------------------------------------------


def test_a_pool_whose_workers_run_is_good() -> None:
    assert read(status()) == source.Reading(GOOD, NOW, B)
    assert read(status(w1=host(A), w2=host(B))).release == "", "it isn't one"


def test_a_worker_that_does_not_run_is_bad_and_its_host_is_named() -> None:
    reading = read(status(w1=host(), w2=DEAD))
    assert (reading.health, reading.release, reading.hosts) == (BAD, B, ("w2",))
    assert reading.reason == "w2: worker 2 doesn't run"
    assert read(status(w1=host(A), w2=DEAD)).release == B, "that of the bad host"
    assert read(status(w1={"pool_state": {**host()["pool_state"], "processes": []}})).reason.endswith("is there")


def test_a_worker_that_keeps_dying_is_bad_while_it_does() -> None:
    assert read(status(w1=host(B, worker(1, restarts=3)))).reason == "w1: worker 1 has died 3 times"
    assert read(status(w1=host(B, worker(1, restarts=2)))).health == GOOD
    assert read(status(w1=host(B, worker(1, restarts=3, uptime=601.0)))).health == GOOD
    assert read(status(w1=host(B, worker(1, restarts=3))), restart_limit=0).health == GOOD


@pytest.mark.parametrize(
    ("queue", "limit", "health"),
    [
        ({**QUEUE, "workers": 0}, 0, BAD),
        ({**QUEUE, "workers": 0, "waiting": 0}, 0, GOOD),
        ({**QUEUE, "workers": None}, 0, GOOD),
        ({**QUEUE, "oldest_waiting_seconds": 90.0}, 60, BAD),
        ({**QUEUE, "oldest_waiting_seconds": 90.0}, 0, GOOD),
        ({**QUEUE, "oldest_waiting_seconds": None}, 60, GOOD),
    ],
)
def test_queues_that_nobody_empties_are_bad(queue: dict[str, Any], limit: float, health: str) -> None:
    reading = read(status(broker={"queues": {"mail": queue}}), waiting_limit=limit)
    assert (reading.health, reading.hosts) == (health, ("w1", "w2") if health == BAD else ())


def test_dead_tasks_count_from_a_limit_on_and_only_those_of_the_release() -> None:
    groups = [{"release": B, "count": 3}, {"release": A, "count": 90}, {"release": None, "count": 90}]
    told = status(broker={"queues": {"mail": QUEUE}, "dead": groups})
    assert read(told, dead_limit=3).reason == f"3 tasks of {B} are dead"
    assert read(told, dead_limit=4).health == GOOD
    assert read(told).health == GOOD


def test_no_answer_is_unknown_and_never_good() -> None:
    assert read(status(w1=host(), w2=SILENT)).health == UNKNOWN
    assert read(status(w1=host(), w2=SILENT)).reason == "w2: unreachable: no route"
    assert read(status(broker={"msg": "refused"})).reason == "the broker: refused"
    assert read(status(w1=DEAD, w2=SILENT)).health == BAD, "what answers says enough"
    assert source.read(status_file.status_data("mail", {}, {"queues": {}}, [], NOW), terms(), NOW).health == UNKNOWN
    assert read(status(at=NOW - 301.0)).health == UNKNOWN
    assert read(status(at=NOW - 299.0)).health == GOOD
    assert read({**status(), "pool": "other"}).health == UNKNOWN


@pytest.mark.parametrize(
    "busy", [{"rollout": {"open": True}}, {"lease": {"released": False}}, {"lease": {"expires_in": 3.0}}]
)
def test_while_somebody_is_at_work_nothing_is_said(busy: dict[str, Any]) -> None:
    assert source.read(status(w1=DEAD, w2=host(B, **busy)), terms(), NOW) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"schema": 2}', '{"schema": 1}', '{"schema": 1, "at": null}'])
def test_what_is_no_status_is_unknown(text: str, tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text(text, encoding="utf-8")
    reading = source.look(terms(tmp_path), NOW)
    assert reading is not None
    assert reading.health == UNKNOWN
    assert reading.reason


def test_reasons_are_short_and_can_be_no_templates() -> None:
    many = {f"w{number}": host(B, worker(1, 0)) for number in range(1, 9)}
    assert read(status(**many)).reason.endswith("w5: worker 1 doesn't run; and 3 more")
    hostile = {"unreachable": True, "msg": "{{ lookup('pipe', 'x') }}{% x %}"}
    assert not set("{}") & set(read(status(w1=hostile)).reason)


GIVEN = {"pool": "mail", "status_file": "x"}


@pytest.mark.parametrize(
    "args", [{"delay": 0}, {"stale_after": 0}, {"readings": 0}, {"pool": ""}, {"status_file": None}]
)
def test_options_that_would_watch_nothing_are_refused(args: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="pool_health: "):
        source.terms_of({**GIVEN, **args})


def test_the_health_is_kept_beside_the_status_unless_said_otherwise() -> None:
    assert source.terms_of(GIVEN).state_file == Path("x.health")
    assert source.terms_of({**GIVEN, "state_file": "y"}).state_file == Path("y")


# -- what makes a change --------------------------------------------------------------------------------------------


def events(*readings: source.Reading, known: source.Known | None = None, count: int = 2) -> list[dict[str, Any]]:
    known, told = known or source.Known(), []
    for reading in readings:
        known, event = source.take(known, reading, terms(readings=count))
        told += [event] if event else []
    return told


def reading(health: str, at: float, release: str = B) -> source.Reading:
    return source.Reading(health, at, release)


def test_samples_are_no_events() -> None:
    told = events(*(reading(BAD if at > 50 else GOOD, float(at)) for at in range(1, 100)))
    assert [(event["was"], event["health"], event["at"]) for event in told] == [
        (UNKNOWN, GOOD, 1.0),
        (GOOD, BAD, 51.0),
    ]


def test_one_reading_is_none_and_one_status_counts_once() -> None:
    good = source.Known(GOOD, B)
    assert events(reading(BAD, 1.0), reading(GOOD, 2.0), reading(BAD, 3.0), known=good) == []
    assert events(*[reading(BAD, 1.0)] * 9, known=good) == []
    assert len(events(reading(BAD, 1.0), reading(BAD, 2.0), known=good)) == 1
    assert len(events(reading(BAD, 1.0), known=good, count=1)) == 1


def test_not_to_know_is_told_at_once_with_the_release_that_was_known() -> None:
    (event,) = events(reading(UNKNOWN, 1.0, ""), reading(UNKNOWN, 2.0, ""), known=source.Known(GOOD, B))
    assert (event["was"], event["health"], event["release"]) == (GOOD, UNKNOWN, B)


def test_another_release_that_is_bad_is_a_change_and_one_that_is_good_is_none() -> None:
    told = events(*(reading(BAD, float(at), A if at < 5 else B) for at in range(1, 9)), known=source.Known(GOOD, A))
    assert [event["release"] for event in told] == [A, B]
    assert len({event["id"] for event in told}) == 2
    assert (
        events(*(reading(GOOD, float(at), A if at < 5 else B) for at in range(1, 9)), known=source.Known(GOOD, A)) == []
    )


def test_the_same_change_has_the_same_id_and_no_other_has() -> None:
    def bad(at: float) -> str:
        return str(events(reading(BAD, at), reading(BAD, at + 1), known=source.Known(GOOD, B))[0]["id"])

    assert bad(1.0) == bad(1.0)
    assert bad(1.0) != bad(2.0)
    assert bad(1.0).startswith("mail-bad-")


# -- files and restarts ---------------------------------------------------------------------------------------------


async def watch(folder: Path, statuses: list[dict[str, Any] | None], wanted: int) -> list[dict[str, Any]]:
    """Run the source; each status is there until it was read. The events, of which ``wanted`` have to come."""
    queue: asyncio.Queue[Any] = asyncio.Queue()
    path = folder / "status.json"
    given = iter(statuses)
    all_read = asyncio.Event()
    loop = asyncio.get_running_loop()

    def clock() -> float:
        # Called before each look.
        try:
            told = next(given)
        except StopIteration:
            loop.call_soon_threadsafe(all_read.set)
            return NOW
        path.unlink(missing_ok=True)
        if told is not None:
            status_file.write(told, str(path))
        return NOW

    task = asyncio.create_task(source.main(queue, {"pool": "mail", "status_file": str(path), "delay": 0.001}, clock))
    try:
        await asyncio.wait_for(all_read.wait(), _SECONDS)
        told = [await asyncio.wait_for(queue.get(), _SECONDS) for _number in range(wanted)]
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert queue.empty()
    return told


def bad_at(at: float) -> dict[str, Any]:
    return status(at, w1=host(), w2=DEAD)


def test_transitions_are_told_from_files_and_not_again_after_a_restart(tmp_path: Path) -> None:
    told = asyncio.run(
        watch(tmp_path, [status(NOW - 9), status(NOW - 8), bad_at(NOW - 7), bad_at(NOW - 6), bad_at(NOW - 5)], 2)
    )
    assert [event["health"] for event in told] == [GOOD, BAD]
    assert {key: told[1][key] for key in ("pool", "was", "release", "hosts", "reason", "at")} == {
        "pool": "mail", "was": GOOD, "release": B, "hosts": ["w2"], "reason": "w2: worker 2 doesn't run",
        "at": NOW - 7,
    }  # fmt: skip
    # It is started anew, with the pool as bad as before; then it is mended.
    assert asyncio.run(watch(tmp_path, [bad_at(NOW - 4), bad_at(NOW - 3)], 0)) == []
    (mended,) = asyncio.run(watch(tmp_path, [bad_at(NOW - 4), status(NOW - 2), status(NOW - 1)], 1))
    assert (mended["was"], mended["health"]) == (BAD, GOOD)


def test_a_change_that_was_half_seen_before_a_restart_is_told_after_it(tmp_path: Path) -> None:
    asyncio.run(watch(tmp_path, [status(NOW - 9), status(NOW - 8), bad_at(NOW - 7)], 1))
    (event,) = asyncio.run(watch(tmp_path, [bad_at(NOW - 6)], 1))
    assert (event["health"], event["at"]) == (BAD, NOW - 7)


def test_no_file_is_unknown_and_nothing_ends_the_source(tmp_path: Path) -> None:
    told = asyncio.run(
        watch(tmp_path, [status(NOW - 9), status(NOW - 8), None, None, status(NOW - 6), status(NOW - 5)], 3)
    )
    assert [event["health"] for event in told] == [GOOD, UNKNOWN, GOOD]
    assert told[1]["reason"] == "the status can't be read: No such file or directory"


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 9}', '{"schema": 1, "what": 2}'])
def test_a_state_that_can_not_be_read_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text(text, encoding="utf-8")
    assert source.recall(tmp_path / "kept") == source.Known()


def test_what_is_kept_comes_back_whole(tmp_path: Path) -> None:
    known = source.Known(BAD, B, "mail-bad-1", "good", 1.0, 2.0, 1)
    source.keep(known, tmp_path / "new" / "kept")
    assert source.recall(tmp_path / "new" / "kept") == known
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["kept"]
    assert json.loads((tmp_path / "new" / "kept").read_text("utf-8"))["schema"] == 1
