# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A server that speaks as much of AWX's REST API as is needed to have templates and workflows there.

It takes what AWX's schema (``awx_schema.json``) has, and refuses what AWX was seen to refuse: a template of a project
that isn't fetched or lacks the playbook, a second object of the same name, a survey whose default isn't among its
choices, two credentials of one type. It is stricter in one thing: AWX ignores a field that it doesn't know.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.awx_objects import PROJECT
from tools.awx_schema import SCHEMA

Object = dict[str, Any]
KINDS: dict[str, Any] = json.loads(SCHEMA.read_text(encoding="utf-8"))["kinds"]
TOKEN = "hush-the-token"  # noqa: S105 - what must never be shown
SURVEY_TYPES: dict[str, Any] = {
    "text": str,
    "textarea": str,
    "password": str,
    "multiplechoice": str,
    "multiselect": list,
}
SURVEY_TYPES |= {"integer": int, "float": float}
_TYPES: dict[str, Any] = {
    "string": str,
    "boolean": bool,
    "integer": int,
    "id": int,
    "field": int,
    "json": (str, dict),
    "object": dict,
}
# What a field of that name names, where the kind isn't the field's name in the plural.
_NAMED = {"inventory": "inventories", "unified_job_template": "job_templates", "default_environment": ""}
_EDGES = ("success_nodes", "failure_nodes", "always_nodes")


class Refused(Exception):
    """An answer that is none of success."""

    def __init__(self, status: int, why: Any) -> None:
        super().__init__(why)
        self.status, self.why = status, why


def check_field(name: str, rule: Object, value: Any) -> str:
    """What is wrong with a value, by the schema; "" when nothing is."""
    if value is None:
        return "may not be null" if rule.get("required") else ""
    if rule["type"] == "choice":
        return "" if value in rule["choices"] else f"{value!r} is not a valid choice"
    if not isinstance(value, _TYPES[rule["type"]]) or (isinstance(value, bool) and rule["type"] != "boolean"):
        return f"not a valid {rule['type']}"
    if name == "extra_vars" and not isinstance(value, str):
        return "Not a valid string."
    size = len(value) if isinstance(value, str) else 0
    if size > (rule.get("max_length") or size):
        return "too long"
    number = value if isinstance(value, int) else 0
    return "" if rule.get("min_value", number) <= number <= rule.get("max_value", number) else "out of range"


def check(kind: str, body: Object, whole: bool) -> dict[str, list[str]]:
    """What is wrong with an object, by field. ``whole``: it is made, not changed."""
    rules = KINDS[kind]["fields"]
    wrong = {name: [check_field(name, rules[name], value)] for name, value in body.items() if name in rules}
    wrong |= {name: ["no such field"] for name in body if name not in rules}
    missing = [name for name, rule in rules.items() if whole and rule.get("required") and name not in body]
    return {**{name: why for name, why in wrong.items() if why != [""]}, **{name: ["required"] for name in missing}}


def check_survey(survey: Object) -> str:
    """What is wrong with a survey; "" when nothing is."""
    for question in survey["spec"]:
        lacking = {"type", "question_name", "variable", "required"} - set(question)
        if lacking:
            return f"{sorted(lacking)} missing"
        wanted, default = SURVEY_TYPES.get(question["type"]), question.get("default", "")
        if wanted is None or (default != "" and not isinstance(default, wanted)):
            return f"{question['variable']}: type or default"
        if question["type"] == "multiplechoice" and default not in question["choices"]:
            return "Default choice must be answered from the choices listed."
        if any(not isinstance(question.get(limit, 0), int) for limit in ("min", "max")):
            return f"{question['variable']}: limit"
    names = [question["variable"] for question in survey["spec"]]
    return "" if names and len(set(names)) == len(names) else "no question, or one twice"


class Awx:
    """What it has. ``changes``: every request that changed something, with what it carried."""

    def __init__(self) -> None:
        self.kinds: dict[str, dict[int, Object]] = {kind: {} for kind in KINDS}
        self.changes: list[tuple[str, str, Any]] = []
        self.secret: set[str] = set()
        self.fetch_fails = False
        self.moved_to = ""
        self.url = ""
        self._last = 0

    def add(self, kind: str, /, **body: Any) -> int:
        """Make an object, as if it had been there."""
        self._last += 1
        one: Object = {"id": self._last, **dict.fromkeys(KINDS[kind]["fields"]), **body}
        one["_roles"] = {role: {"id": self._last * 1000 + n} for n, role in enumerate(KINDS[kind]["roles"])}
        one["_related"] = {name: [] for name in (*KINDS[kind]["related"], *_EDGES)}
        self.kinds[kind][self._last] = one
        return self._last

    def named(self, kind: str, name: str) -> Object:
        """The object of that name."""
        (found,) = (each for each in self.kinds[kind].values() if each["name"] == name)
        return found

    def told(self, kind: str, number: int) -> Object:
        """An object as AWX tells it."""
        one = self.kinds[kind][number]
        found = {name: value for name, value in one.items() if not name.startswith("_")}
        found["summary_fields"] = {"object_roles": one["_roles"]}
        if kind == "credentials":
            secret = self._secret_inputs(one)
            found["inputs"] = {k: "$encrypted$" if k in secret else v for k, v in (one["inputs"] or {}).items()}
        if kind == "workflow_job_template_nodes":
            found |= {edge: one["_related"][edge] for edge in _EDGES}
            if one.get("_approval"):
                found["summary_fields"]["unified_job_template"] = {
                    **self.told("workflow_approval_templates", one["_approval"]),
                    "unified_job_type": "workflow_approval",
                }
        return found

    def ask(self, method: str, path: str, query: Object, body: Object) -> Any:
        """One request."""
        words = path.strip("/").split("/")
        if words[0] == "roles":
            teams = [self.told("teams", n) for n, t in self.kinds["teams"].items() if int(words[1]) in t["_has"]]
            return {"results": teams, "next": None}
        if words[0] not in self.kinds:
            raise Refused(404, path)
        if method != "GET":
            self.changes.append((method, path, body))
        if len(words) == 1:
            return self._list(words[0], query) if method == "GET" else self._make(words[0], body)
        kind, number = words[0], int(words[1]) if words[1].isdigit() else 0
        if number not in self.kinds[kind]:
            raise Refused(404, path)
        if len(words) == 2:
            return self._one(method, kind, number, body)
        return self._inside(method, kind, number, words[2], body)

    def _list(self, kind: str, query: Object) -> Object:
        wanted = {key: value for key, value in query.items() if key != "page_size"}
        if kind == "job_templates" and "organization" in wanted:  # it has that of its project
            wanted.pop("organization")
        found = [n for n, one in self.kinds[kind].items() if all(str(one.get(k)) == str(v) for k, v in wanted.items())]
        return {"results": [self.told(kind, number) for number in found], "next": None}

    def _make(self, kind: str, body: Object) -> Object:
        self._check(kind, body, {}, True)
        where = ("name", "organization", "unified_job_template", "credential_type")
        for other in self.kinds[kind].values():
            if "name" in body and all(other.get(key) == body.get(key) for key in where):
                raise Refused(400, {"__all__": ["already exists"]})
        number = self.add(kind, **body)
        if kind == "projects":
            self.kinds[kind][number].update(status="pending", _asked=0)
        return self.told(kind, number)

    def _one(self, method: str, kind: str, number: int, body: Object) -> Any:
        one = self.kinds[kind][number]
        if method == "DELETE":
            del self.kinds[kind][number]
            return None
        if method == "PATCH":
            self._check(kind, body, one, False)
            if (
                kind == "execution_environments"
                and body.get("organization", one["organization"]) != one["organization"]
            ):
                raise Refused(400, "Cannot change the organization of an execution environment")
            one.update(body)
        elif kind == "projects" and one.get("status") == "pending":
            one["_asked"] += 1
            if one["_asked"] > 1:
                one["status"] = "failed" if self.fetch_fails else "successful"
        return self.told(kind, number)

    def _check(self, kind: str, body: Object, before: Object, whole: bool) -> None:
        wrong = check(kind, body, whole)
        for name, value in body.items():
            named = _NAMED.get(name, f"{name}s")
            if value is not None and named in self.kinds and KINDS[kind]["fields"].get(name, {}).get("type") == "id":
                wrong |= {} if value in self.kinds[named] else {name: [f"object {value} does not exist"]}
        if kind == "job_templates" and not wrong:
            project = self.kinds["projects"][{**before, **body}["project"]]
            playbook = body.get("playbook", before.get("playbook"))
            if project.get("status") != "successful" or not (PROJECT / str(playbook)).is_file():
                wrong["playbook"] = ["Playbook not found for project."]
        if kind == "credentials" and "inputs" in body:
            given = {**before, **body}
            known = {
                each["id"] for each in self.kinds["credential_types"][given["credential_type"]]["inputs"]["fields"]
            }
            wrong |= {"inputs": ["Additional properties"]} if set(body["inputs"]) - known else {}
        if wrong:
            raise Refused(400, wrong)

    def _secret_inputs(self, credential: Object) -> set[str]:
        of_type = self.kinds["credential_types"][credential["credential_type"]]["inputs"] or {}
        return {each["id"] for each in of_type.get("fields", ()) if each.get("secret")}

    def _inside(self, method: str, kind: str, number: int, relation: str, body: Object) -> Any:
        one = self.kinds[kind][number]
        if relation not in KINDS[kind]["related"]:
            raise Refused(404, relation)
        if relation == "survey_spec":
            return self._survey(method, one, body)
        if relation == "workflow_nodes":
            nodes, of = "workflow_job_template_nodes", {"workflow_job_template": number}
            return self._make(nodes, {**body, **of}) if method == "POST" else self._list(nodes, of)
        if relation == "create_approval_template":
            one["_approval"] = self._make("workflow_approval_templates", body)["id"]
            one["unified_job_template"] = one["_approval"]
            return {}
        if relation == "update":
            one.update(status="pending", _asked=0)
            return {}
        return self._related(method, kind, one, relation, body)

    def _survey(self, method: str, one: Object, body: Object) -> Any:
        if method == "POST" and check_survey(body):
            raise Refused(400, {"error": check_survey(body)})
        if method != "GET":
            one["_survey"] = body if method == "POST" else {}
        return one.get("_survey", {})

    def _related(self, method: str, kind: str, one: Object, relation: str, body: Object) -> Any:
        if relation == "roles":
            one["_has"].add(body["id"])
            return None
        there, other = one["_related"][relation], relation.partition("_templates")[0]
        named = "notification_templates" if other == "notification" else kind if relation in _EDGES else relation
        if method == "GET":
            return {"results": [self.told(named, each) for each in there], "next": None}
        if body["id"] not in self.kinds[named]:
            raise Refused(404, relation)
        if body.get("disassociate"):
            there.remove(body["id"])
            return None
        types = [self.kinds[named][each].get("credential_type") for each in [*there, body["id"]]]
        if relation == "credentials" and len(set(types)) < len(types):
            raise Refused(400, "Cannot assign multiple credentials of one type.")
        if any(body["id"] in one["_related"][edge] for edge in _EDGES if relation in _EDGES):
            raise Refused(400, {"Error": "Relationship not allowed."})
        there.append(body["id"])
        return None


@contextmanager
def an_awx() -> Iterator[Awx]:
    """One with what the role says has to be there."""
    awx = Awx()
    home = awx.add("organizations", name="Operations")
    awx.add("inventories", name="production", organization=home)
    for team in ("on call", "platform", "leads"):
        awx.kinds["teams"][awx.add("teams", name=team, organization=home)]["_has"] = set()
    awx.add("notification_templates", name="chat", organization=home)
    machine = awx.add("credential_types", name="Machine", inputs={"fields": [{"id": "ssh_key_data", "secret": True}]})
    awx.add("credentials", name="ssh to the workers", organization=home, credential_type=machine, inputs={})

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            parts = urlsplit(self.path)
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or "{}")
            status, said = 200, None
            try:
                if self.headers["Authorization"] != f"Bearer {TOKEN}":
                    raise Refused(401, {"detail": f"Authentication credentials {self.headers['Authorization']}"})
                query = {key: values[0] for key, values in parse_qs(parts.query).items()}
                said = awx.ask(self.command, parts.path.removeprefix("/api/v2"), query, body)
            except Refused as refused:
                status, said = refused.status, refused.why
            text = b"" if said is None else json.dumps(said).encode()
            self.send_response(302 if awx.moved_to else status if text else 204)
            if awx.moved_to:
                self.send_header("Location", awx.moved_to)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PATCH = do_DELETE = _answer

        def log_message(self, *_words: Any) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        awx.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield awx
        finally:
            server.shutdown()
            thread.join(30)
