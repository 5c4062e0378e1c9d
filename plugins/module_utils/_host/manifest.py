# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which tasks a release can run: asked of its own code, outside of its workers, as their user and in their environment.

What is asked is a declared list, or a command of the pool's, or the engine's own program, which is stored with the
release. It prints the names: one on each line, or at the end one line of JSON, ``{"tasks": [...]}``, or for code that
keeps no register of its tasks ``{"unknown": [...]}``: those of ``BACKSTEP_TASKS`` (JSON) that it can't run. Its object
may have ``schedules``, too: what is enqueued by the clock, entry by entry, with the name of its task.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Optional

from .._rollout.errors import BuildFailed
from .._rollout.masking import hide
from .._rollout.stranding import changed_tasks
from .commands import ENDED, plain_environment, run_group
from .host import Host
from .launch import extend
from .layout import Layout, Spec, expand_command, fill_in, worker_environment

PYTHON, COMMAND = "{python}", "{command}"
_SECONDS = 60.0
_KEPT = 1 << 22
_LETTERS = 500
# An environment variable can't be longer than 128 KiB.
_ASKED_AT_ONCE = 500


def declared(host: Host, spec: Spec, environment: dict[str, str]) -> dict[str, Any]:
    """What a release says of its tasks when it is staged, to be sealed with it.

    :returns: ``tasks`` (sorted names, or None where its code can only be asked for some), ``problem``: why it can't be
        asked at all, or "", ``schedules`` (task by entry) where it tells them, and ``versions`` of arguments by name,
        where the pool declares some.
    :raises BuildFailed: the pool's own command gives no answer.
    """
    versions = {"versions": spec.manifest["versions"]} if "versions" in spec.manifest else {}
    return {**_names(host, spec, environment), **versions}


def _names(host: Host, spec: Spec, environment: dict[str, str]) -> dict[str, Any]:
    given = spec.manifest
    if "tasks" in given:
        return {"tasks": sorted(given["tasks"]), "problem": ""}
    if "command" not in given:
        return {"tasks": None, "problem": "nothing tells which tasks this release can run"}
    answer = _ask(host, spec, environment, [])
    if answer["problem"] and PYTHON not in given["command"]:
        raise BuildFailed(
            f"pool_manifest.command gave no task names: {answer['problem']}.",
            left="The release was removed; what runs goes on.",
            next_step="Mend the command and deploy again.",
        )
    schedules = {"schedules": answer["schedules"]} if answer.get("schedules") is not None else {}
    return {"tasks": answer["tasks"], "problem": answer["problem"], **schedules}


def unknown_tasks(host: Host, release: str, names: Collection[str]) -> tuple[Optional[list[str]], str]:
    """Those of these task names that a stored release can't run, sorted; None, and why, where nobody can tell.

    :raises ReleaseDamaged: it can't be read.
    """
    sealed = host.store.manifest(release)
    if sealed.get("tasks") is not None:
        return sorted(set(names) - set(sealed["tasks"])), ""
    problem = sealed.get("problem", "it was stored by a Backstep that didn't ask")
    found: set[str] = set()
    wanted = sorted(names)
    for start in range(0, len(wanted), _ASKED_AT_ONCE):
        if problem:
            break
        some = wanted[start : start + _ASKED_AT_ONCE]
        answer = _ask(host, host.store.spec(release), host.store.environment(release), some)
        problem = answer["problem"]
        found.update(answer["unknown"] or ())
    return (None, problem) if problem else (sorted(found), "")


def stranded_tasks(host: Host, told: Mapping[str, Any], names: Collection[str], of_current: bool) -> dict[str, Any]:
    """Which of these tasks the release can't run that a way back leads to, or the current one.

    :param told: the pool's state, as ``describe_host`` tells it.
    :returns: as the module ``release_info`` returns it.
    """
    current, target = told["current"], told["rollback"]["target"]
    release = current if of_current else target
    if not release:
        return {"release": release, "tasks": None, "changed": {}, "since": None, "problem": "there is no release"}
    stored = [known["id"] for known in told["releases"] if known["seal"]]
    # Of what was parked it isn't known who enqueued it; what was stored after a release is what it came back from.
    producers = stored[stored.index(release) + 1 :] if of_current else [current] if current else []
    unknown, changed, problem = cannot_run(host, release, names, producers)
    tasks = unknown if unknown is None and not changed else sorted({*(unknown or ()), *changed})
    return {"release": release, "tasks": tasks, "changed": changed, "since": told["since"], "problem": problem}


def schedule_changes(host: Host, release: str, current: Optional[str]) -> dict[str, list[str]]:
    """What a stored release enqueues by the clock other than the one before it.

    :returns: ``begin`` and ``end`` (entries, each as ``<entry> (<task>)``) and ``unknown`` (those whose tasks it
        doesn't know itself); empty lists where one of the two tells nothing of schedules.
    :raises ReleaseDamaged: one can't be read.
    """
    sealed = host.store.manifest(release)
    before = host.store.manifest(current).get("schedules") if current else {}
    after = sealed.get("schedules")
    if before is None or after is None:
        return {"begin": [], "end": [], "unknown": []}
    known = sealed["tasks"]

    def told(entries: Iterable[tuple[str, str]]) -> list[str]:
        return sorted(f"{entry} ({task})" for entry, task in entries)

    return {
        "begin": told(set(after.items()) - set(before.items())),
        "end": told(set(before.items()) - set(after.items())),
        "unknown": told(entry for entry in after.items() if known is not None and entry[1] not in known),
    }


def cannot_run(
    host: Host, release: str, names: Collection[str], producers: Iterable[str]
) -> tuple[Optional[list[str]], dict[str, str], str]:
    """Which of these tasks a stored release can't run; without names nothing is read.

    :param producers: other stored releases, which enqueue them.
    :returns: the names that it doesn't know, sorted, or None where nobody can tell; of the others those that a producer
        enqueues with arguments that it can't take, with the version; and why nobody can tell, or "".
    :raises ReleaseDamaged: one can't be read.
    """
    if not names:
        return [], {}, ""
    unknown, problem = unknown_tasks(host, release, names)
    known = set(names).difference(unknown or ())
    run, changed = host.store.manifest(release).get("versions", {}), dict[str, str]()
    for producer in producers:
        changed.update(changed_tasks(known, host.store.manifest(producer).get("versions", {}), run))
    return unknown, changed, problem


def _ask(host: Host, spec: Spec, environment: dict[str, str], names: list[str]) -> dict[str, Any]:
    """``tasks``, ``unknown`` and ``problem``; one of the first two is None, or both where there is a problem."""
    command = _command(spec, host.layout)
    if not command:
        return _problem("the workers' command names no Python interpreter that could be asked")
    url = host.broker_url(spec.broker) or ""
    queues = [queue for group in spec.queues for queue in group]
    known = worker_environment(spec, host.pool, host.layout, 0, queues)
    del known["BACKSTEP_WORKER"]
    whole = {
        **plain_environment(spec.user),
        "USER": spec.user,
        "LOGNAME": spec.user,
        **({spec.broker_variable: url} if url else {}),
        **environment,
        **known,
        "BACKSTEP_TASKS": json.dumps(names),
        # A sealed release is to stay as it is.
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    for extension in spec.extends:
        extend(whole, fill_in(extension, spec.id, host.layout))
    app = str(host.layout.app(spec.id))
    found = run_group(command, timeout=_SECONDS, directory=app, user=spec.user, environment=whole, kept=_KEPT)
    if found.code or found.how != ENDED:
        said = hide(found.last_words, [*environment.values(), url])
        return _problem(f"it ended with {found.code}: {said}"[:_LETTERS])
    return _read(found.out)


def _command(spec: Spec, layout: Layout) -> list[str]:
    worker = expand_command(spec.command, spec.id, layout, [queue for group in spec.queues for queue in group])
    words: list[str] = []
    for word in spec.manifest["command"]:
        if word == PYTHON:
            words.append(_python(worker[0]))
        elif word == COMMAND:
            words += worker[3:] if _is_python(worker[0]) else worker[1:]
        else:
            words.append(fill_in(word, spec.id, layout))
    return words if all(words) else []


def engine_arguments(command: Sequence[str], program: str) -> Optional[Sequence[str]]:
    """The arguments of a command that starts an engine's program, or its module; None where it does neither."""
    name = os.path.basename(program)
    if _is_python(command[0]):
        is_it = list(command[1:2]) == ["-m"] and command[2].partition(".")[0] == name
        return command[3:] if is_it else None
    return command[1:] if os.path.basename(command[0]) == name else None


def _is_python(program: str) -> bool:
    return os.path.basename(program).startswith("python")


def _python(program: str) -> str:
    """The interpreter that runs a program, or that lies beside it, as in a virtual environment; "" where none does."""
    if _is_python(program):
        return program
    for name in ("python", "python3"):
        beside = os.path.join(os.path.dirname(program), name)
        if os.path.isabs(beside) and os.access(beside, os.X_OK):
            return beside
    return ""


def _read(said: str) -> dict[str, Any]:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if not lines or not lines[-1].startswith("{"):
        return {"tasks": sorted(set(lines)), "unknown": None, "problem": ""}
    try:
        told = json.loads(lines[-1])
        names = {kind: sorted(map(str, told[kind])) for kind in ("tasks", "unknown") if kind in told}
        entries = told.get("schedules")
        schedules = None if entries is None else {str(entry): str(task) for entry, task in entries.items()}
    except (ValueError, TypeError, AttributeError):
        names = {}
    if not names:
        return _problem("its last line is JSON that has no tasks")
    return {"tasks": None, "unknown": None, "problem": "", "schedules": schedules, **names}


def _problem(text: str) -> dict[str, Any]:
    return {"tasks": None, "unknown": None, "problem": text}
