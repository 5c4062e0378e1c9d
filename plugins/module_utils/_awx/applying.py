# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes AWX have the objects that are wanted, one after the other, and tells what it did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Optional

from .._rollout.errors import AwxRefused, BadInput
from .._waiting.deadline import Deadline
from .api import Api
from .kinds import ATTACHED, EXACT, KINDS, differences, fields_of, shown, survey_of

Wanted = Mapping[str, Any]
_POLL_SECONDS = 1.0
_FETCHED = ("successful",)
_NOT_FETCHED = ("failed", "error", "canceled")
_STALE = (*_NOT_FETCHED, "never updated")
_SCM = {"scm_type", "scm_url", "scm_branch", "credential"}


class Applier:
    """One run.

    :param organization: the name of the one that everything belongs to.
    :param dry_run: whether only to tell what would be done.
    :param renew: whether secrets that AWX has are stored anew.
    :ivar actions: what was done, or would be: ``action``, ``kind``, ``name`` and what else there is to say.
    :ivar diffs: the same as Ansible shows differences.
    """

    def __init__(self, api: Api, organization: str, dry_run: bool, renew: bool) -> None:
        self.api = api
        self.dry_run = dry_run
        self.actions: list[dict[str, Any]] = []
        self.diffs: list[dict[str, Any]] = []
        self._renew = renew
        # Ids of objects, by kind and name. None: it isn't there yet, and would be by now if this weren't a dry run.
        self._ids: dict[tuple[str, str], Optional[int]] = {}
        self._organization: Optional[int] = None
        self._organization = self.id_of("organizations", organization)

    def apply(self, wanted: Wanted) -> Optional[int]:
        """Make one object be as it is wanted; its id, or None in a dry run that would make it.

        :raises AwxRefused: what it names isn't there, or AWX refuses something.
        :raises AwxUnreachable: AWX gives no answer.
        """
        kind, name = wanted["kind"], wanted["name"]
        fields = {**fields_of(wanted), **self._refs(kind, wanted)}
        there = self._find(kind, name, fields)
        number = self._make(kind, wanted, fields) if there is None else self._change(kind, wanted, fields, there)
        self._ids[(kind, name)] = number
        if kind == "projects" and number is not None and not self.dry_run:
            self._wait_for_project(number, wanted, there, fields)
        path = f"{kind}/{number}"
        if wanted.get("survey") is not None:
            self._survey(path, number, wanted)
        for relation, names in (wanted.get("attached") or {}).items():
            self._attach(path, number, wanted, relation, names)
        for role, teams in (wanted.get("roles") or {}).items():
            self._grant(path, number, wanted, role, teams)
        return number

    def id_of(self, kind: str, name: str) -> Optional[int]:
        """The id of an object that has to be there, or to be made by this run before.

        :raises AwxRefused: it isn't.
        """
        if (kind, name) not in self._ids:
            found = self._find(kind, name, {})
            if found is None:
                raise AwxRefused(
                    f"AWX has no {KINDS[kind].said} '{name}', or doesn't show it to this user.",
                    left="What was done before this is in AWX.",
                    next_step=f"Make it, or name another {KINDS[kind].said}, and run this again.",
                )
            self._ids[(kind, name)] = int(found["id"])
        return self._ids[(kind, name)]

    def note(self, action: str, wanted: Wanted, before: Any = None, after: Any = None, **more: Any) -> None:
        """Enter what is done next into what will be told."""
        kind, name = KINDS[wanted["kind"]].said, wanted["name"]
        self.actions.append({"action": action, "kind": kind, "name": name, **more})
        header = f"{kind} {name}"
        self.diffs.append(
            {"before_header": header, "after_header": header, "before": before or {}, "after": after or {}}
        )

    def _refs(self, kind: str, wanted: Wanted) -> dict[str, Optional[int]]:
        known, given = KINDS[kind], wanted.get("refs") or {}
        unknown = sorted(set(given) - set(known.refs))
        if unknown:
            raise BadInput(f"A {known.said} ({wanted['name']}) names nothing by {', '.join(unknown)}.")
        found = {field: self.id_of(known.refs[field], name) for field, name in given.items()}
        return {**found, "organization": self._organization} if known.organization else found

    def _find(self, kind: str, name: str, fields: Mapping[str, Any]) -> Optional[dict[str, Any]]:
        query: dict[str, Any] = {"name": name}
        for field in KINDS[kind].inside:
            number = self._organization if field == "organization" else fields.get(field)
            if number is None:  # what it would belong to isn't there yet
                return None
            query[field] = number
        found = list(self.api.every(f"{kind}/", **query))
        if len(found) > 1:
            raise AwxRefused(f"AWX has {len(found)} objects of the kind {KINDS[kind].said} named '{name}'.")
        return found[0] if found else None

    def _make(self, kind: str, wanted: Wanted, fields: dict[str, Any]) -> Optional[int]:
        secrets = list(wanted.get("secrets") or {})
        self.note("create", wanted, after=shown(fields, secrets))
        if self.dry_run:
            return None
        return int(self.api.send("POST", f"{kind}/", fields)["id"])

    def _change(self, kind: str, wanted: Wanted, fields: Mapping[str, Any], there: Mapping[str, Any]) -> int:
        secrets = list(wanted.get("secrets") or {})
        # Where it belongs is settled when it is made: an execution environment may be everybody's.
        settled = {name: value for name, value in fields.items() if name != "organization"}
        changes = differences(settled, there, secrets if self._renew else ())
        if changes:
            before = shown({name: there.get(name) for name in changes}, secrets)
            self.note("change", wanted, before, shown(changes, secrets), fields=sorted(changes))
            if not self.dry_run:
                self.api.send("PATCH", f"{kind}/{there['id']}/", changes)
        return int(there["id"])

    def _survey(self, path: str, number: Optional[int], wanted: Wanted) -> None:
        survey = survey_of(wanted["survey"])
        there = self.api.get(f"{path}/survey_spec/") if number is not None else {}
        if survey == there:
            return
        self.note("survey", wanted, there, survey, questions=[each["variable"] for each in wanted["survey"]])
        if not self.dry_run:
            self.api.send(*(("POST", f"{path}/survey_spec/", survey) if survey else ("DELETE", f"{path}/survey_spec/")))

    def _attach(self, path: str, number: Optional[int], wanted: Wanted, relation: str, names: Sequence[str]) -> None:
        if relation not in ATTACHED:
            raise BadInput(f"{wanted['name']} can't be attached to {relation}.")
        there = {each["id"]: each["name"] for each in self._listed(f"{path}/{relation}/", number)}
        ids = {name: self.id_of(ATTACHED[relation], name) for name in names}
        if relation in EXACT:
            for extra in [each for each in there if each not in ids.values()]:
                self.note("detach", wanted, {relation: there[extra]}, what=relation, from_=there[extra])
                self._post(f"{path}/{relation}/", {"id": extra, "disassociate": True})
        for name, each in ids.items():
            if each is None or each not in there:
                self.note("attach", wanted, after={relation: name}, what=relation, to=name)
                self._post(f"{path}/{relation}/", {"id": each})

    def _grant(self, path: str, number: Optional[int], wanted: Wanted, role: str, teams: Iterable[str]) -> None:
        ids = {team: self.id_of("teams", team) for team in teams}
        if not ids:
            return
        roles = self.api.get(f"{path}/")["summary_fields"]["object_roles"] if number is not None else {}
        if number is not None and role not in roles:
            raise BadInput(f"{wanted['name']} has no {role}; it has {', '.join(sorted(roles))}.")
        holders = {each["id"] for each in self._listed(f"roles/{roles[role]['id']}/teams/", number)} if roles else set()
        for team, each in ids.items():
            if each not in holders:
                self.note("grant", wanted, after={role: team}, role=role, team=team)
                if roles:
                    self._post(f"teams/{each}/roles/", {"id": roles[role]["id"]})

    def _listed(self, path: str, number: Optional[int]) -> list[dict[str, Any]]:
        return list(self.api.every(path)) if number is not None else []

    def _post(self, path: str, body: Mapping[str, Any]) -> None:
        if not self.dry_run:
            self.api.send("POST", path, body)

    def _wait_for_project(
        self, number: int, wanted: Wanted, before: Optional[Mapping[str, Any]], fields: Mapping[str, Any]
    ) -> None:
        """Wait until AWX has fetched it: it takes no template before. It fetches it by itself when it changes."""
        stale = before is not None and before["status"] in _STALE and not _SCM & set(differences(fields, before))
        if stale:
            self.note("fetch", wanted)
            self.api.send("POST", f"projects/{number}/update/", {})
        said: list[str] = []

        def is_decided() -> bool:
            said.append(self.api.get(f"projects/{number}/")["status"])
            return said[-1] in (*_FETCHED, *_NOT_FETCHED)

        Deadline(float(wanted.get("wait") or 0)).wait_until(is_decided, _POLL_SECONDS)
        if said[-1] not in _FETCHED:
            raise AwxRefused(
                f"AWX has not fetched the project {wanted['name']}: {said[-1]}.",
                left="AWX takes no template before it has.",
                next_step="Look at its last update; check the URL, the branch and the credential; run this again.",
            )
