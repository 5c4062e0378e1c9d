# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The nodes of a workflow in AWX, and what comes after which. They are exactly those that are wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from .._rollout.errors import BadInput
from .applying import Applier, Wanted
from .kinds import EDGES

_APPROVAL = ("name", "description", "timeout")


def apply_all(applier: Applier, objects: Sequence[Wanted]) -> None:
    """Make every object be as it is wanted, in their order, and workflows with their nodes.

    :raises AwxRefused: what one names isn't there, or AWX refuses something.
    :raises AwxUnreachable: AWX gives no answer.
    """
    for wanted in objects:
        number = applier.apply(wanted)
        if wanted["nodes"] is not None:
            apply_nodes(applier, number, wanted)


def apply_nodes(applier: Applier, workflow: Optional[int], wanted: Wanted) -> None:
    """Make a workflow have the nodes that are wanted.

    :param workflow: its id; None in a dry run that would make it.
    :raises BadInput: an edge leads nowhere.
    """
    nodes = wanted["nodes"]
    names = [node["identifier"] for node in nodes]
    for node in nodes:
        for lost in {name for edge in EDGES for name in node.get(edge) or ()} - set(names):
            raise BadInput(f"In the workflow {wanted['name']} {node['identifier']} leads to {lost}, which isn't there.")
    listed = applier.api.every(f"workflow_job_templates/{workflow}/workflow_nodes/") if workflow is not None else ()
    there = {node["identifier"]: node for node in listed}
    for name in [name for name in there if name not in names]:
        applier.note("remove_node", wanted, {"node": name}, node=name)
        if not applier.dry_run:
            applier.api.send("DELETE", f"workflow_job_template_nodes/{there.pop(name)['id']}/")
    ids = {node["identifier"]: _node(applier, workflow, wanted, node, there.get(node["identifier"])) for node in nodes}
    for node in nodes:
        _edges(applier, wanted, node, there.get(node["identifier"]), ids)


def _node(
    applier: Applier, workflow: Optional[int], wanted: Wanted, node: Wanted, there: Optional[Mapping[str, Any]]
) -> Optional[int]:
    name, approval = node["identifier"], node.get("approval") or {}
    template = None if approval else applier.id_of("job_templates", node["template"])
    if there is None:
        plays = f"approval {approval['name']}" if approval else node["template"]
        applier.note("add_node", wanted, after={"node": name, "plays": plays}, node=name)
        if applier.dry_run:
            return None
        body = {"identifier": name} if approval else {"identifier": name, "unified_job_template": template}
        path = f"workflow_job_templates/{workflow}/workflow_nodes/"
        there = applier.api.send("POST", path, body)
    number = int(there["id"])
    if approval:
        _approval(applier, wanted, node, there)
    elif there.get("unified_job_template") != template or template is None:
        applier.note("change_node", wanted, after={"node": name, "plays": node["template"]}, node=name)
        if not applier.dry_run:
            applier.api.send("PATCH", f"workflow_job_template_nodes/{number}/", {"unified_job_template": template})
    return number


def _approval(applier: Applier, wanted: Wanted, node: Wanted, there: Mapping[str, Any]) -> None:
    name, approval = node["identifier"], {key: node["approval"].get(key) or "" for key in _APPROVAL}
    approval["timeout"] = int(approval["timeout"] or 0)
    present = (there.get("summary_fields") or {}).get("unified_job_template") or {}
    if present.get("unified_job_type") != "workflow_approval":
        if there.get("unified_job_template"):
            plays = f"approval {approval['name']}"
            applier.note("change_node", wanted, after={"node": name, "plays": plays}, node=name)
        if not applier.dry_run:
            path = f"workflow_job_template_nodes/{there['id']}/create_approval_template/"
            applier.api.send("POST", path, approval)
        return
    changes = {key: value for key, value in approval.items() if present.get(key) != value}
    if changes:
        before = {key: present.get(key) for key in changes}
        applier.note("change_approval", wanted, before, changes, node=name)
        if not applier.dry_run:
            applier.api.send("PATCH", f"workflow_approval_templates/{present['id']}/", changes)


def _edges(
    applier: Applier,
    wanted: Wanted,
    node: Wanted,
    there: Optional[Mapping[str, Any]],
    ids: Mapping[str, Optional[int]],
) -> None:
    name = node["identifier"]
    changes: Sequence[tuple[str, str, bool]] = [
        change
        for edge, relation in EDGES.items()
        for change in _edge_changes(node.get(edge) or (), relation, there, ids)
    ]
    # What goes first goes first: AWX refuses two edges between the same nodes.
    for relation, other, joins in sorted(changes, key=lambda change: change[2]):
        said = {"node": name, relation: other}
        applier.note("join" if joins else "part", wanted, None if joins else said, said if joins else None, **said)
        if not applier.dry_run:
            body = {"id": ids.get(other)} if joins else {"id": int(other), "disassociate": True}
            applier.api.send("POST", f"workflow_job_template_nodes/{ids[name]}/{relation}/", body)


def _edge_changes(
    wanted: Sequence[str], relation: str, there: Optional[Mapping[str, Any]], ids: Mapping[str, Optional[int]]
) -> list[tuple[str, str, bool]]:
    """Relation, the other node (by its id where it is left), and whether the edge is made."""
    present = set((there or {}).get(relation) or ())
    left = [number for number in sorted(present) if number not in {ids[name] for name in wanted}]
    made = [name for name in wanted if ids[name] is None or ids[name] not in present]
    return [*((relation, str(number), False) for number in left), *((relation, name, True) for name in made)]
