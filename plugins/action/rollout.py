# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Decides for the fleet between the steps: the hosts' answers go in, data that the next step reads comes out."""

from __future__ import annotations

import functools
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable, Optional

from ansible import context
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.backstep.workers.plugins.module_utils._hook_args import hooks_of
from ansible_collections.backstep.workers.plugins.module_utils._rollout import (
    alerts,
    care,
    drill_plans,
    fleet,
    notices,
    observing,
)
from ansible_collections.backstep.workers.plugins.module_utils._rollout import record as records
from ansible_collections.backstep.workers.plugins.module_utils._rollout.answers import failure_of
from ansible_collections.backstep.workers.plugins.module_utils._rollout.dying import by_rule
from ansible_collections.backstep.workers.plugins.module_utils._rollout.effects import stands
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BackstepError, BadInput
from ansible_collections.backstep.workers.plugins.module_utils._rollout.ladder import forecast
from ansible_collections.backstep.workers.plugins.module_utils._rollout.metrics import render
from ansible_collections.backstep.workers.plugins.module_utils._rollout.plans import ABORT, OVERLAP
from ansible_collections.backstep.workers.plugins.module_utils._rollout.pool_metrics import pool_samples
from ansible_collections.backstep.workers.plugins.module_utils._rollout.stranding import LEAVE
from ansible_collections.backstep.workers.plugins.module_utils._rollout.verdict import GOOD
from ansible_collections.backstep.workers.plugins.module_utils._scheduler_args import SCHEDULER_OPTIONS, scheduler_of
from ansible_collections.backstep.workers.plugins.plugin_utils import owner as owners
from ansible_collections.backstep.workers.plugins.plugin_utils import report, status_file, text, text_end, typed
from ansible_collections.backstep.workers.plugins.plugin_utils.answering import way_back_seconds
from ansible_collections.backstep.workers.plugins.plugin_utils.planning import (
    all_queues,
    lost_when_killed,
    plan_back,
    plan_deploy,
    states_of,
)
from ansible_collections.backstep.workers.plugins.plugin_utils.report_journal import data_from_journals
from ansible_collections.backstep.workers.plugins.plugin_utils.text_dead import chosen_lines, dead_lines
from ansible_collections.backstep.workers.plugins.plugin_utils.text_drill import drill_lines, drill_next_lines
from ansible_collections.backstep.workers.plugins.plugin_utils.text_queues import effect_lines, to_park_lines

OPERATIONS = ["plan", "note", "observe", "dead", "stands", "end", "status", "metrics", "report", "drill", "drilled"]
OPTIONS: dict[str, Any] = {
    "operation": {"type": "str", "required": True, "choices": OPERATIONS},
    "pool": {"type": "str", "required": True},
    "kind": {"type": "str", "default": "deploy", "choices": ["deploy", "rollback"]},
    "all_hosts": {"type": "list", "elements": "str", "default": []},
    "partial": {"type": "bool", "default": False},
    "skip": {"type": "list", "elements": "str", "default": []},
    "cross_barrier": {"type": "bool", "default": False},
    "alert": {"type": "dict", "default": {}},
    "watch_window": {"type": "float", "default": 3600.0},
    "waves": {"type": "list", "elements": "raw", "default": []},
    "min_consuming": {"type": "raw", "default": ""},
    "queues": {"type": "list", "elements": "raw", "default": []},
    "processes": {"type": "int", "default": 1},
    "confirm_timeout": {"type": "float", "default": 600.0},
    "lease_timeout": {"type": "float", "default": 300.0},
    "hooks": {"type": "dict", "default": {}},
    **SCHEDULER_OPTIONS,
    "wave_seconds": {"type": "float", "default": 0.0},
    "engine": {"type": "str", "default": ""},
    "command": {"type": "list", "elements": "str", "default": []},
    "drain_timeout": {"type": "float", "default": 0.0},
    "mode": {"type": "str", "default": OVERLAP},
    "drain_policy": {"type": "str", "default": ABORT},
    "visibility_timeout": {"type": "float", "default": 0.0},
    "stranded": {"type": "str", "default": LEAVE},
    "leave_queues": {"type": "list", "elements": "str", "default": []},
    "answers": {"type": "str", "default": ""},
    "broker": {"type": "dict", "default": {}},
    "plan": {"type": "dict", "default": {}},
    "record": {"type": "dict", "default": {}},
    "hosts": {"type": "list", "elements": "str", "default": []},
    "steps": {"type": "list", "elements": "dict", "default": []},
    "verdicts": {"type": "str", "default": ""},
    "touches": {"type": "bool", "default": False},
    "wave": {"type": "int"},
    "recovered": {"type": "list", "elements": "dict", "default": []},
    "parking": {"type": "dict", "default": {}},
    "dead": {"type": "dict", "default": {}},
    "effects": {"type": "dict", "default": {}},
    "dead_rules": {"type": "list", "elements": "dict", "default": []},
    "unknown": {"type": "list", "elements": "str", "default": []},
    "report_dir": {"type": "str", "default": ""},
    "status_file": {"type": "str", "default": ""},
    "metrics_file": {"type": "str", "default": ""},
    "journals": {"type": "str", "default": ""},
    "ended": {"type": "dict", "default": {}},
    "asked": {"type": "float"},
    "drill": {"type": "dict", "default": {}},
    "allowed": {"type": "bool", "default": False},
    "production": {"type": "bool", "default": False},
    "production_too": {"type": "bool", "default": False},
    "bake": {"type": "float", "default": 0.0},
}


class ActionModule(ActionBase):
    """Runs on the controller, once for all hosts."""

    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: Optional[str] = None, task_vars: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        """Do one operation."""
        super().run(tmp, task_vars)
        self._variables = task_vars or {}
        operations: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "plan": self._plan,
            "note": self._note,
            "observe": self._observe,
            "dead": self._dead,
            "stands": self._stands,
            "end": self._end,
            "status": self._status,
            "metrics": self._metrics,
            "report": self._report,
            "drill": self._drill,
            "drilled": self._drilled,
        }
        validation = ArgumentSpecValidator(OPTIONS).validate(self._task.args)
        try:
            if validation.error_messages:
                raise BadInput("; ".join(validation.error_messages) + ".", left="Nothing was changed.")
            params = dict(validation.validated_parameters)
            return {"changed": False, **operations[params["operation"]](params)}
        except BackstepError as error:
            return {"failed": True, **error.result()}

    def _answers(self, variable: str, hosts: list[str]) -> dict[str, Optional[dict[str, Any]]]:
        hostvars = self._variables["hostvars"]
        return {host: hostvars[host].get(variable) for host in hosts}

    def _show(self, lines: list[str]) -> None:
        for line in lines:
            Display().display(line)

    def _plan(self, params: dict[str, Any]) -> dict[str, Any]:
        playing = list(self._variables["ansible_play_hosts_all"])
        batch, skip = self._variables["ansible_play_batch"], params["skip"]
        whole_again = [typed.WHOLE_TEMPLATE] if owners.launched(self._variables) else []
        left_out = fleet.left_out(params["all_hosts"], playing, batch, skip, params["partial"], *whole_again)
        answers = self._answers(params["answers"], [host for host in playing if host not in skip])
        dead = owners.dead_runs(answers)
        alert, stays = alerts.alert_of(params["alert"]), ""
        if params["kind"] == "deploy":
            plan = plan_deploy(params, answers, dead)
        else:
            plan, stays = plan_back(params, answers, dead, alert)
        plan.left_out, plan.drill = left_out, params["drill"].get("kind", "")
        lines = self._plan_lines(params, plan)
        lines += owners.taken_over(answers, dead) if params["kind"] != "deploy" and plan.hosts else []
        lines = text.alert_lines(params["pool"], alert, stays, lines) if alert else lines
        self._show(lines)
        record = records.begin_record(plan, answers)
        record["observed"] = observing.observe({}, observing.look_of(params["pool"], params["broker"], time.time()))
        owner = {**owners.this_run(), **owners.launched(self._variables), "left_out": left_out}
        owner |= {"alert": alert.id} if alert else {}
        broker, states = params["broker"], states_of(answers)
        hooks, scheduler = hooks_of(params["hooks"]), scheduler_of(params["scheduler"])
        return {
            "plan": {
                **asdict(plan),
                "needed": plan.needed,
                "owner": owner,
                "alert": alert.sentence if alert else "",
                "stays": stays,
                "back_seconds": way_back_seconds(hooks, list(states.values()), scheduler),
                "baseline": fleet.baseline(plan, broker.get("workers") or []),
                "broker_before": {name: broker.get(name) for name in ("queues", "server") if name in broker},
            },
            "record": record,
            "queues": all_queues(params, states),
            "text": lines,
        }

    def _plan_lines(self, params: dict[str, Any], plan: fleet.FleetPlan) -> list[str]:
        lines = text.plan_lines(params["pool"], plan, self._task.check_mode)
        if plan.hosts:
            lines += to_park_lines(params["parking"], params["broker"])
            if params["kind"] == "deploy":
                lines += filter(None, [forecast(params["drain_policy"], params["mode"], lost_when_killed(params))])
        elif not plan.unfinished:
            lines += text_end.typed_lines([("to look at it", self._command()("status"))])
        return lines

    def _note(self, params: dict[str, Any]) -> dict[str, Any]:
        record = records.copy_record(params["record"])
        taking_part: dict[str, None] = {}
        # What was skipped was not asked: in check mode nothing runs that could answer.
        for step in [] if self._task.check_mode else params["steps"]:
            asked = self._asked(step["variable"], params["hosts"])
            taking_part.update(dict.fromkeys(asked))
            judges = step.get("judges", True)
            records.note_step(
                record, list(asked), step["name"], asked, step["key"], touches=params["touches"], judges=judges
            )
        looks = observing.look_of(params["pool"], params["broker"], time.time())
        if params["verdicts"] and not self._task.check_mode:
            verdicts = self._asked(params["verdicts"], params["hosts"])
            records.note_verdicts(record, verdicts)
            looks += [look for answer in verdicts.values() for look in (answer or {}).get("observed") or []]
        record["observed"] = observing.observe(record.get("observed") or {}, looks)
        gone = records.workers_gone(params["pool"], record)
        told = params["parking"].get("told") or []
        lines = [*text.schedule_lines(told), *text.staying_lines(params["parking"])]
        if params["wave"] is not None:
            lines += text_end.wave_lines(params["wave"], params["waves"], list(taking_part), record)
        self._show(text_end.wrapped(lines, Display().columns))
        # For the report: how long it took to notice, and between which moments a host's clock was read.
        record["noted"] = time.time()
        if record["verdict"] != GOOD:
            record.setdefault("noticed", record["noted"])
        return {"record": {**record, "reasons": records.reasons(record), "workers_gone": gone}}

    def _observe(self, params: dict[str, Any]) -> dict[str, Any]:
        record = params["record"]
        looks = observing.look_of(params["pool"], params["broker"], time.time())
        course = observing.columns(observing.observe(record.get("observed") or {}, looks))
        needing = care.bounded(_care(params))
        return {"observed": {"course": course, "care": needing, "noticed": record.get("noticed")}}

    def _asked(self, variable: str, hosts: list[str]) -> dict[str, Optional[dict[str, Any]]]:
        answers = self._answers(variable, hosts)
        return {host: answer for host, answer in answers.items() if not (answer and answer.get("skipped"))}

    def _dead(self, params: dict[str, Any]) -> dict[str, Any]:
        if not params["plan"]:
            lines = chosen_lines(params["dead"])
            self._show(lines)
            return {"text": lines}
        went_back = records.outcome(params["plan"], params["record"])["ended"] == "rolled_back"
        names = {group["task"] for group in params["dead"].get("dead") or []}
        return {"by_rule": by_rule(names, params["dead_rules"] if went_back else [], params["unknown"])}

    def _stands(self, params: dict[str, Any]) -> dict[str, Any]:
        answers = self._answers(params["answers"], list(self._variables["ansible_play_hosts_all"]))
        return {"stands": stands(answers)}

    def _end(self, params: dict[str, Any]) -> dict[str, Any]:
        playing = [host for host in self._variables["ansible_play_hosts_all"] if host not in params["plan"]["left_out"]]
        journals = self._answers(params["journals"], playing) if params["journals"] else {}
        outcome = {**records.outcome(params["plan"], params["record"]), "recovered": params["recovered"]}
        data = report.report_data(params["pool"], params["plan"], params["record"], outcome, journals, params["broker"])
        data["care"] = _care(params)
        lines = [text_end.check_line(params["pool"], params["plan"])]
        if not self._task.check_mode:
            width = Display().columns
            lines = text_end.end_lines(params["pool"], params["plan"], params["record"], outcome, width)
        parking = text.parking_lines(params["parking"])
        lines += effect_lines(params["effects"])
        lines += text.deserted_lines(params["parking"], params["broker"]) if outcome["ended"] == "rolled_back" else []
        lines += [*parking, *dead_lines(params["dead"]), *text.care_lines(outcome, params["broker"], parking)]
        event = notices.event_of_end(params["pool"], params["plan"], params["record"], outcome, time.time())
        if params["report_dir"] and not self._task.check_mode:
            paths = report.write(data, params["report_dir"])
            event["report"] = paths[0]
            lines += [f"report: {path}" for path in paths]
        following = text_end.next_lines(params["plan"], params["record"], outcome, self._command())
        lines += self._following(following, event)
        self._show(lines)
        why = f" Why: {outcome['reasons']}" if outcome["reasons"] else ""
        told = {name: data[name] for name in ("times", "events", "skew")}
        told.update(record=params["record"], outcome=outcome, event=event)
        told["artifact"] = notices.artifact(event, outcome["ok"])
        return {"ok": outcome["ok"], "message": f"{lines[0]}{why}", "text": lines, **told}

    def _command(self) -> Callable[..., str]:
        if owners.launched(self._variables):
            return typed.next_template
        return functools.partial(typed.next_command, context.CLIARGS)

    def _following(self, lines: list[str], event: dict[str, Any]) -> list[str]:
        """What to type next, as it is shown; told to others as well."""
        lines = [] if self._task.check_mode else lines
        more = typed.not_repeated(context.CLIARGS)
        lines = lines + ([f"      (and -e as in this run: {', '.join(more)})"] if more and lines else [])
        event["next"] = " ".join(line.strip().removeprefix("next: ") for line in lines)
        return lines

    def _status(self, params: dict[str, Any]) -> dict[str, Any]:
        playing = list(self._variables["ansible_play_hosts_all"])
        answers = self._answers(params["answers"], playing)
        lines = text.status_lines(params["pool"], answers, params["broker"])
        self._show(lines)
        if params["status_file"] and not self._task.check_mode:
            data = status_file.status_data(params["pool"], answers, params["broker"], lines, time.time())
            self._show([f"status: {status_file.write(data, params['status_file'])}"])
        silent = _silent(answers, params["broker"])
        return {"text": lines, "ok": not silent, "silent": silent}

    def _metrics(self, params: dict[str, Any]) -> dict[str, Any]:
        answers = self._answers(params["answers"], list(self._variables["ansible_play_hosts_all"]))
        needs = status_file.needs_a_person(text.status_lines(params["pool"], answers, params["broker"]))
        samples = pool_samples(params["pool"], answers, params["broker"], len(needs), time.time())
        path = Path(params["metrics_file"]).expanduser().absolute()
        if not self._task.check_mode:
            status_file.write_text(path, render(samples))
        lines = [f"metrics: {path}"]
        self._show(lines)
        silent = _silent(answers, params["broker"])
        return {"text": lines, "ok": not silent, "silent": silent}

    def _report(self, params: dict[str, Any]) -> dict[str, Any]:
        journals = self._answers(params["journals"], list(self._variables["ansible_play_hosts_all"]))
        data = data_from_journals(params["pool"], journals, params["broker"], params["asked"])
        lines = [text.end_sentence(data["pool"], data["ended"], data["release"], list(data["back_to"].values()))]
        if not self._task.check_mode:
            lines += [f"report: {path}" for path in report.write(data, params["report_dir"])]
        self._show(lines)
        return {"text": lines, "silent": [host for host in journals if host not in data["clocks"]]}

    def _drill(self, params: dict[str, Any]) -> dict[str, Any]:
        kind, bake = params["drill"]["kind"], float(params["bake"])
        drill_plans.require_allowed(params["allowed"], params["production"], params["production_too"], kind, bake)
        playing = [host for host in self._variables["ansible_play_hosts_all"] if host not in params["skip"]]
        answers = self._answers(params["answers"], playing)
        plan = drill_plans.plan_drill(answers, kind, bake)
        if params["verdicts"] and not self._task.check_mode:
            drill_plans.require_working(plan["of"], self._asked(params["verdicts"], list(answers)))
        return {"drill": plan, "given": drill_plans.content(plan)}

    def _drilled(self, params: dict[str, Any]) -> dict[str, Any]:
        plan = params["plan"]
        verdicts = self._asked(params["verdicts"], list(plan["before"]))
        after = params["broker"].get("queues") or {}
        found = drill_plans.judge(plan, params["record"], params["ended"], params["drill"], after, verdicts)
        touched, event = bool(params["record"]["touched"]), params["ended"]["event"]
        event = notices.event_of_drill(event, found["problems"]) if touched else dict(event)
        lines = drill_lines(params["pool"], found, self._task.check_mode, Display().columns)
        lines += self._following(drill_next_lines(found, self._command()), event)
        self._show(lines)
        noted = self._task.check_mode or touched
        told = {"ended": time.time(), "noted": noted, "text": lines, "message": "; ".join(found["problems"])}
        return {**found, **told, "event": event}


def _silent(answers: dict[str, Optional[dict[str, Any]]], broker: dict[str, Any]) -> list[str]:
    """Who gave no answer."""
    hosts = [host for host, answer in answers.items() if failure_of(answer, "pool_state")]
    return hosts + (["the broker"] if failure_of(broker, "queues") else [])


def _care(params: dict[str, Any]) -> dict[str, Any]:
    parked = [*(params["parking"].get("parked") or ()), params["dead"].get("held")]
    died = params["dead"].get("died")
    return care.tasks_of_care(params["recovered"], params["record"]["drained"], parked, died)
