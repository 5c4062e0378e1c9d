# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The flows of the role ``pool`` as programs, read from its own task files, and runs that are somewhere in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, wraps
from types import SimpleNamespace
from typing import Any

import yaml
from ansible_collections.backstep.workers.plugins.action.rollout import OPTIONS, ActionModule
from ansible_collections.backstep.workers.plugins.module_utils._rollout import record as records
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BackstepError
from jinja2 import ChainableUndefined, Environment, meta

from tests.explore.paper import BROKER, POOL
from tools.common import CHECKOUT

TASKS = CHECKOUT / "roles" / "pool" / "tasks"
DEPLOY, ROLLBACK, DRILL = "flow_deploy", "flow_rollback", "flow_drill"
HOSTS = ("w1", "w2")
LEASE_SECONDS, CONFIRM_SECONDS = 60.0, 100.0
# Asked on a worker host, or of chance. All others are done at once: nothing can come between that makes a difference.
ON_HOSTS = (
    "release", "release_info", "release_switch", "release_confirm", "rollout_lease", "rollout_verdict", "rollout_drill"
)  # fmt: skip
ANSWERS: dict[str, dict[str, Any]] = {
    "queue_info": {"queues": {"q": {"waiting": 0}}, "workers": [], "gates": {}},
    "task_move": {"recovered": []},
}
_VARIABLE = re.compile(r"pool__\w+")
_TEMPLATES = Environment(undefined=ChainableUndefined)  # noqa: S701  # nothing here is a page


def _as_list(lazy: Callable[..., Any]) -> Callable[..., list[Any]]:
    """A filter that gives a list, as all do with Ansible."""

    @wraps(lazy)
    def wrapped(*given: Any, **named: Any) -> list[Any]:
        return list(lazy(*given, **named))

    return wrapped


for _name in ("map", "select", "reject", "selectattr", "rejectattr"):
    _TEMPLATES.filters[_name] = _as_list(_TEMPLATES.filters[_name])
_TEMPLATES.filters["dict2items"] = lambda given: [{"key": key, "value": value} for key, value in given.items()]
_TEMPLATES.filters["bool"] = lambda given: str(given).lower() in ("true", "yes", "1")
_TEMPLATES.globals.clear()
_Variables = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Task:
    """One task. ``variables`` are those of the includes that it is in, outermost first."""

    name: str
    module: str
    arguments: dict[str, Any]
    register: str
    when: tuple[str, ...]
    may_fail: bool
    variables: _Variables


@dataclass(frozen=True)
class Jump:
    """Go on at ``to`` unless all of ``when`` holds."""

    when: tuple[str, ...]
    to: int
    variables: _Variables


@dataclass(frozen=True)
class Program:
    """A flow. ``live``: for each position, the variables that somebody may still read from there on."""

    code: tuple[Task | Jump, ...]
    live: tuple[frozenset[str], ...]


@cache
def program(flow: str) -> Program:
    """The program of a flow, with its includes and as many turns of its loops as a pool here can need."""
    code: list[Task | Jump] = []
    _compile(f"{flow}.yml", (), code)
    live: list[frozenset[str]] = [frozenset()]
    for instruction in reversed(code):
        live.append(live[-1] | frozenset(_VARIABLE.findall(repr(instruction))))
    return Program(tuple(code), tuple(reversed(live)))


def _compile(file: str, variables: _Variables, code: list[Task | Jump]) -> None:
    for task in yaml.safe_load((TASKS / file).read_text(encoding="utf-8")):
        _compile_task(task, (), variables, code)


def _compile_task(task: dict[str, Any], when: tuple[str, ...], variables: _Variables, code: list[Task | Jump]) -> None:
    given = task.get("when", [])
    when = (*when, *(str(condition) for condition in (given if isinstance(given, list) else [given])))
    variables = (*variables, *task.get("vars", {}).items())
    if "block" in task:
        for inner in task["block"]:
            _compile_task(inner, when, variables, code)
        return
    module = next(key for key in task if "." in key)
    if module != "ansible.builtin.include_tasks":
        arguments = task[module] if isinstance(task[module], dict) else {}
        may_fail = task.get("failed_when") is False
        name = module.rpartition(".")[2]
        seen = _seen(variables, f"{arguments} {when}")
        code.append(Task(task["name"], name, arguments, task.get("register", ""), when, may_fail, seen))
        return
    turns: list[tuple[tuple[str, ...], _Variables]] = [(when, variables)]
    if "loop" in task:
        each, control = task["loop"].strip("{} "), task["loop_control"]
        turns = [
            (
                (*when, f"({each}) | length > {turn}"),
                ((control["loop_var"], f"{{{{ ({each})[{turn}] }}}}"), (control["index_var"], turn), *variables),
            )
            for turn in range(len(HOSTS))
        ]
    for conditions, inside in turns:
        start = len(code)
        code.append(Jump((), 0, ()))
        _compile(task[module], inside, code)
        code[start] = Jump(conditions, len(code), _seen(inside, f"{conditions}"))


def _seen(variables: _Variables, text: str) -> _Variables:
    """Those of the variables that a text mentions."""
    found: _Variables = ()
    for name, value in reversed(variables):
        if re.search(rf"\b{name}\b", text):
            found = ((name, value), *found)
            text += f" {value}"
    return found


# -- templates ----------------------------------------------------------------------------------------------------


@cache
def _expression(text: str) -> Callable[[Mapping[str, Any]], Any]:
    return _with_its_names(_TEMPLATES.compile_expression(text), f"{{{{ {text} }}}}")


@cache
def _text(text: str) -> Callable[[Mapping[str, Any]], Any]:
    return _with_its_names(_TEMPLATES.from_string(text).render, text)


def _with_its_names(fill_in: Callable[..., Any], text: str) -> Callable[[Mapping[str, Any]], Any]:
    """Fill in with the variables that a text names: handing over all takes longer than all the rest of exploring."""
    names = meta.find_undeclared_variables(_TEMPLATES.parse(text))
    return lambda variables: fill_in({name: variables[name] for name in names if name in variables})


def _value(given: Any, variables: Mapping[str, Any]) -> Any:
    if isinstance(given, dict):
        return {key: _value(item, variables) for key, item in given.items()}
    if isinstance(given, list):
        return [_value(item, variables) for item in given]
    if not isinstance(given, str) or "{{" not in given:
        return given
    if given.startswith("{{") and given.endswith("}}") and given.count("{{") == 1:
        return _expression(given[2:-2].strip())(variables)
    return _text(given)(variables)


# -- runs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A controller somewhere in a flow. Never changed, only replaced.

    :param shared: what was registered by tasks that ran once.
    :param own: what was registered by host.
    :param code: the exit status, once it has ended.
    """

    name: str
    flow: str
    release: str
    hosts: tuple[str, ...]
    settings: tuple[tuple[str, Any], ...] = ()
    at: int = 0
    turn: int = 0
    shared: dict[str, Any] = field(default_factory=dict)
    own: dict[str, dict[str, Any]] = field(default_factory=dict)
    code: int | None = None

    @property
    def host(self) -> str:
        """The host that is asked next."""
        return self.hosts[self.turn]

    @property
    def task(self) -> Task:
        """The task that is next, once it has been advanced."""
        task = program(self.flow).code[self.at]
        assert isinstance(task, Task)
        return task

    @property
    def plan(self) -> dict[str, Any]:
        """The fleet's plan, empty before there is one."""
        return dict(self.shared.get("pool__plan", {}).get("plan", {}))

    def variables(self, extra: _Variables = ()) -> dict[str, Any]:
        """What a template sees for the host that is next."""
        found = {**DEFAULTS, "pool__given": {"version": self.release}, **dict(self.settings)}
        found["inventory_hostname"] = self.host
        found["ansible_play_hosts_all"] = list(self.hosts)
        found["query"] = lambda _kind, _pattern: list(self.hosts)
        found["hostvars"] = {host: self.own.get(host, {}) for host in self.hosts}
        found.update(self.shared)
        found.update(self.own.get(self.host, {}))
        for name, given in extra:
            found[name] = _value(given, found)
        return found

    def arguments(self) -> dict[str, Any]:
        """The arguments of the task that is next, for the host that is next."""
        known = {"pool": POOL, "host": self.host}
        given = _value(self.task.arguments, self.variables(self.task.variables))
        return {**known, **{key: value for key, value in given.items() if value is not None}}


DEFAULTS: dict[str, Any] = {
    **yaml.safe_load((CHECKOUT / "roles" / "pool" / "defaults" / "main.yml").read_text(encoding="utf-8")),
    "ansible_check_mode": False,
    "ansible_playbook_python": "python3",
    "pool_name": POOL,
    "pool_engine": "rq",
    "pool_broker_url": BROKER,
    "pool_queues": ["q"],
    "pool_user": "nobody",
    "pool_source": {},
    "pool_waves": [1, "100%"],
    "pool_drain": {"timeout": 10.0, "on_timeout": "abort"},
    "pool_confirm_timeout": CONFIRM_SECONDS,
    "pool_lease_timeout": LEASE_SECONDS,
    "pool__lease_timeout": LEASE_SECONDS,
    "pool__back_lease_timeout": LEASE_SECONDS,
    "pool__back_step_timeout": 0,
    "pool_keep": 1,
    "pool__bake": 1.0,
    "pool__canary_timeout": 1.0,
    "pool__health": {},
}


class Decider(ActionModule):
    """The action that decides, without Ansible around it."""

    def __init__(self, run: Run, variables: dict[str, Any]) -> None:
        empty: dict[str, Any] = {}
        hostvars = {host: {**variables, **run.own.get(host, empty)} for host in run.hosts}
        self._variables = {
            "hostvars": hostvars,
            "ansible_play_hosts_all": list(run.hosts),
            "ansible_play_batch": list(run.hosts),
        }
        self._task = SimpleNamespace(check_mode=False)

    def decide(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The action's answer."""
        params = {**{name: option.get("default") for name, option in OPTIONS.items()}, **arguments}
        works = {
            "plan": self._plan,
            "note": self._note,
            "observe": self._observe,
            "stands": self._stands,
            "end": self._end,
            "drill": self._drill,
            "drilled": self._drilled,
        }
        try:
            return dict(works[params["operation"]](params))
        except BackstepError as error:
            return {"failed": True, **error.result()}

    def _show(self, lines: list[str]) -> None:
        """Nobody looks."""

    def _end(self, params: dict[str, Any]) -> dict[str, Any]:
        """How it ended, without the report."""
        outcome = records.outcome(params["plan"], params["record"])
        told = {"outcome": {**outcome, "recovered": []}, "touched": params["record"]["touched"]}
        # Of a drill: nothing is measured here, and nothing counted.
        told.update(record=params["record"], events=[], times={}, skew={}, event={"reason": ""})
        return {"ok": outcome["ok"], "message": "", **told}


def advance(run: Run) -> Run:
    """The run at the next task that has to ask a host, or ended."""
    code = program(run.flow).code
    while run.code is None:
        if run.at == len(code):
            return replace(run, code=0)
        here = code[run.at]
        if isinstance(here, Jump):
            run = replace(run, at=run.at + 1 if _holds(here, run) else here.to)
        elif here.module not in ON_HOSTS or only_reads(here):
            run = _do_at_once(run, here)
        elif _holds(here, run):
            return run
        else:
            run = answered(run, {"skipped": True})
    return run


def only_reads(task: Task) -> bool:
    """Whether it only reads the journal for the report, which tells no worlds apart."""
    return task.module == "release_info" and "events" in task.arguments


def _holds(here: Task | Jump, run: Run) -> bool:
    if not here.when:
        return True
    variables = run.variables(here.variables)
    return all(_expression(condition)(variables) for condition in here.when)


def _do_at_once(run: Run, task: Task) -> Run:
    answer: dict[str, Any] = ANSWERS.get(task.module, {})
    if not _holds(task, run):
        answer = {"skipped": True}
    elif task.module == "fail":
        return replace(run, code=1)
    elif task.module == "rollout":
        answer = Decider(run, run.variables()).decide(run.arguments())
        if answer.get("failed"):
            return replace(run, code=1)
    shared = {**run.shared, task.register: answer} if task.register else run.shared
    return replace(run, at=run.at + 1, shared=shared)


def answered(run: Run, answer: dict[str, Any]) -> Run:
    """The run after the host that is next has given this answer to the task that is next."""
    task = run.task
    own = run.own
    if task.register:
        own = {**own, run.host: {**own.get(run.host, {}), task.register: answer}}
    if ("msg" in answer or "error" in answer) and not task.may_fail:
        return replace(run, own=own, code=1)
    last = run.turn + 1 == len(run.hosts)
    return replace(run, own=own, at=run.at + 1 if last else run.at, turn=0 if last else run.turn + 1)
