# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host program ``bin/backstep``: the same code as the modules, with no controller and no network."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, Callable

from .._rollout.drills import drill_sentence
from .._rollout.errors import BackstepError, HostUnfit, refused_by_system
from .._rollout.metrics import render
from .._rollout.names import utc
from .._rollout.pool_metrics import host_samples
from .._waiting.deadline import Deadline
from .comparing import config_lines
from .files import write_file
from .host import Host
from .info import describe_host
from .layout import Part
from .reaping import reap
from .way_back import go_back_alone, guard

_RESUME_SECONDS = 7 * 24 * 3600.0


def _print(options: argparse.Namespace, data: Any, lines: list[str]) -> None:
    sys.stdout.write(json.dumps(data, indent=1, sort_keys=True) + "\n" if options.json else "\n".join(lines) + "\n")


def status(host: Host, options: argparse.Namespace) -> int:
    """What runs here, as the processes report it."""
    found = describe_host(host)
    rollout = found["rollout"]
    lines = [
        f"pool      {found['pool']} on {found['host']} ({found['supervisor']})",
        f"current   {found['current']} ({found['current_state']}) since {utc(found['since'])}",
        "running   " + (", ".join(f"{name}: {n} processes" for name, n in found["running"].items()) or "nothing"),
        f"rollout   {rollout['token']} {rollout['kind']}: {rollout['phase'].replace('_', ' ')}"
        if rollout
        else "rollout   none yet",
        f"back to   {found['rollback']['target'] or found['rollback']['problem']}",
    ]
    drill = found["drill"]
    lines += [f"drill     {drill_sentence(drill)}"] if drill else []
    lines += _scheduler(found)
    lines += [f"barrier   {name} can't be undone: {found['barriers'][name]['reason']}" for name in found["barriers"]]
    lines += [_draining(each) for each in found["draining"]]
    for each in found["reaped"]:
        names = ", ".join(worker["worker"] for worker in each["running"])
        lines += [f"killed    {utc(each['ended'])}, after their drain: {names}"] if names else []
    lines += [f"! {problem}" for problem in found["problems"]]
    _print(options, found, lines)
    return 0


def _scheduler(found: dict[str, Any]) -> list[str]:
    scheduler = found["scheduler"]
    if not scheduler:
        return []
    here = f"that of {scheduler['release']} (pid {scheduler['pid']})" if scheduler["release"] else "none here"
    elsewhere = f"; it belongs on {scheduler['host']}" if scheduler["host"] not in (None, found["host"]) else ""
    return [f"scheduler {here}{elsewhere}"]


def _draining(entry: dict[str, Any]) -> str:
    names = ", ".join(worker["worker"] for worker in entry["running"])
    return f"draining  {entry['release']} since {utc(entry['since'])}: {names or 'nothing runs any more'}"


def history(host: Host, options: argparse.Namespace) -> int:
    """The journal's events, oldest first."""
    events = host.journal.read()[0]
    lines = []
    for event in events[-options.last :]:
        what = f"{event['event']:<17} {event.get('release') or event.get('target') or ''} {event.get('reason', '')}"
        lines.append(f"{utc(event['time'])}  {event['token']:>4}  {event['by']:<10}  {what}".rstrip())
    _print(options, events[-options.last :], lines)
    return 0


def verify(host: Host, options: argparse.Namespace) -> int:
    """Check the journal, every good release and the installed units, byte for byte; 1 when something differs."""
    found = describe_host(host, verify=True)
    lines = [f"! {problem}" for problem in found["problems"]] or [
        "Journal, good releases and units are as they were sealed."
    ]
    _print(options, {"problems": found["problems"]}, lines)
    return 1 if found["problems"] else 0


def diff(host: Host, options: argparse.Namespace) -> int:
    """The lines in which the configs of two releases differ; they may hold secrets."""
    lines = config_lines(host, options.left, options.restored)
    _print(options, {"lines": lines}, lines or ["They are the same."])
    return 0


def rollback(host: Host, options: argparse.Namespace) -> int:
    """Back to the last good release, or to a named one."""
    done = go_back_alone(host, options.to, options.reason, options.cross_barrier)
    _print(options, {"done": done, "status": describe_host(host)}, [done])
    return 0


def metrics(host: Host, options: argparse.Namespace) -> int:
    """What is measured here, as Prometheus reads it."""
    found = describe_host(host)
    text = render(host_samples(found, found["clock"]))
    if options.write:
        write_file(Path(options.write).absolute(), text.encode("utf-8"), 0o644)
    if options.json or not options.write:
        _print(options, found, text.splitlines())
    return 0


def run_guard(host: Host, options: argparse.Namespace) -> int:
    """What the supervisor runs when the rollout's time is up, or at boot."""
    host.by = "guard"
    _print(options, {}, [guard(host, boot=options.boot, wait=options.wait)])
    return 0


def run_reaper(host: Host, options: argparse.Namespace) -> int:
    """Let releases go whose last task has ended; the supervisor runs it while one drains."""
    host.by = "reaper"
    _print(options, {}, [reap(host, wait=options.wait)])
    return 0


def resume(host: Host, options: argparse.Namespace) -> int:
    """Start a release's workers again as soon as they have ended (supervisord can't queue that)."""
    if options.detach and os.fork():
        return 0
    if options.detach:
        os.setsid()
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(quiet, stream)
    release = options.release

    def all_run_or_unwanted() -> bool:
        state = host.state()
        target = state.rollout.target if state.rollout and state.rollout.open else state.current
        if release not in (target, state.current):
            return True
        host.supervisor.start_stopped(release, Part.WORKERS)
        return all(main.wanted for main in host.supervisor.processes(release, Part.WORKERS))

    return 0 if Deadline(_RESUME_SECONDS).wait_until(all_run_or_unwanted, poll=0.5) else 1


COMMANDS: dict[str, Callable[[Host, argparse.Namespace], int]] = {
    "status": status,
    "history": history,
    "verify": verify,
    "diff": diff,
    "rollback": rollback,
    "metrics": metrics,
    "guard": run_guard,
    "reap": run_reaper,
    "resume": resume,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="backstep", description="One pool of queue workers on this host.")
    parser.add_argument("--root", default="", help="the pool's root (default: where this program lies)")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in COMMANDS.items():
        command = commands.add_parser(name, help=(function.__doc__ or "").splitlines()[0])
        command.add_argument("--json", action="store_true", help="print JSON")
        if name == "history":
            command.add_argument("--last", type=int, default=50, help="how many events (default: 50)")
        elif name == "rollback":
            command.add_argument("--to", default="", metavar="ID", help="a good release (default: the last one)")
            command.add_argument("--reason", default="asked for on the host", help="for the journal")
            command.add_argument("--cross-barrier", action="store_true", help="also out of what can't be undone")
        elif name == "metrics":
            command.add_argument("--write", default="", metavar="FILE", help="for node exporter: a file, and not here")
        elif name == "diff":
            command.add_argument("left", metavar="FROM", help="a release")
            command.add_argument("restored", metavar="TO", help="another one")
        elif name == "guard":
            command.add_argument("--boot", action="store_true")
            command.add_argument("--wait", action="store_true")
        elif name == "reap":
            command.add_argument("--wait", action="store_true")
        elif name == "resume":
            command.add_argument("--detach", action="store_true")
            command.add_argument("release")
    return parser


def _require_access(root: Path) -> None:
    """Refuse a user that may not look into the pool's state.

    :raises HostUnfit: names the user.
    """
    state = root / "state"
    if state.exists() and not os.access(state, os.R_OK | os.X_OK):
        raise HostUnfit(
            f"User {os.geteuid()} may not look into {state}.",
            left="Nothing was changed.",
            next_step="Run it as root: sudo " + " ".join(sys.argv),
        )


def main() -> int:
    """Run one command; 0 when it did what it says, 1 when not."""
    options = _parser().parse_args()
    root = options.root or str(Path(os.path.abspath(sys.argv[0])).parent.parent)
    try:
        try:
            _require_access(Path(root))
            return COMMANDS[options.command](Host(root, by="person"), options)
        except OSError as error:
            raise refused_by_system(error, f"'{options.command}' could not be done") from None
    except BackstepError as error:
        if getattr(options, "json", False):
            sys.stdout.write(json.dumps(error.result()) + "\n")
        sys.stderr.write(f"backstep: {error}\n")
        return 1
