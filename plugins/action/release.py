# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The controller's side of ``release``: render config, pack the source, give it its id, send what is missing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any, Optional

from ansible import constants as C
from ansible.errors import AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.urls import open_url
from ansible.plugins.loader import lookup_loader
from ansible_collections.backstep.workers.plugins.module_utils._hook_args import hooks_of
from ansible_collections.backstep.workers.plugins.module_utils._pool_args import POOL_OPTIONS
from ansible_collections.backstep.workers.plugins.module_utils._queue.table import worker_defaults
from ansible_collections.backstep.workers.plugins.module_utils._queue.url import for_workers, without_secrets
from ansible_collections.backstep.workers.plugins.module_utils._queue_args import queue_groups
from ansible_collections.backstep.workers.plugins.module_utils._release_args import (
    RELEASE_OPTIONS,
    manifest_of,
    words,
)
from ansible_collections.backstep.workers.plugins.module_utils._rollout.errors import BackstepError, BadInput
from ansible_collections.backstep.workers.plugins.module_utils._rollout.ids import release_id
from ansible_collections.backstep.workers.plugins.module_utils._rollout.routes import with_tagged
from ansible_collections.backstep.workers.plugins.module_utils._scheduler_args import scheduler_of
from ansible_collections.backstep.workers.plugins.plugin_utils.host_action import HostAction
from ansible_collections.backstep.workers.plugins.plugin_utils.host_program import build_host_program
from ansible_collections.backstep.workers.plugins.plugin_utils.sources import Source, prepare_source, unusable

_FILES = Path(__file__).resolve().parents[2] / "roles" / "pool" / "files"
_REPORTERS, _MANIFESTS = _FILES / "reporters", _FILES / "manifests"
# Below ``config``: Backstep's own files in a release.
_OURS = "backstep"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DOWNLOAD_SECONDS = 60


class ActionModule(HostAction):
    """Runs on the controller, once for each host."""

    TRANSFERS_FILES = True

    def run(self, tmp: Optional[str] = None, task_vars: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        """Plan first; send and store only what the host lacks."""
        super().run(tmp, task_vars)
        variables = task_vars or {}
        try:
            params = self._validated()
            source = prepare_source(params["source"], Path(C.DEFAULT_LOCAL_TMP) / "backstep-sources", _download)
            arguments = self._prepared(params, source, variables)
        except BackstepError as error:
            return {"failed": True, **error.result()}
        planned = self.ask(variables, lambda: self._call({**arguments, "state": "planned"}, variables), known=0.0)
        if params["state"] == "planned" or self._task.check_mode or planned.get("failed") or planned.get("unreachable"):
            return planned
        missing = any(action["action"] == "build" for action in planned["actions"])

        def stage() -> dict[str, Any]:
            try:
                return self._stage(arguments, source, missing, variables)
            finally:
                self._remove_tmp_path(self._connection._shell.tmpdir)

        return self.ask(variables, stage, self.known(source.size))

    def _validated(self) -> dict[str, Any]:
        validation = ArgumentSpecValidator({**POOL_OPTIONS, **RELEASE_OPTIONS}).validate(self._task.args)
        if validation.error_messages:
            raise BadInput("; ".join(validation.error_messages) + ".", left="Nothing was changed.")
        return dict(validation.validated_parameters)

    def _call(self, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = self._execute_module(
            module_name="backstep.workers.release", module_args=arguments, task_vars=variables
        )
        return result

    def _stage(
        self, arguments: dict[str, Any], source: Source, missing: bool, variables: dict[str, Any]
    ) -> dict[str, Any]:
        directory = self._make_tmp_path()
        program = self._connection._shell.join_path(directory, "backstep")
        self._transfer_data(program, build_host_program())
        sent = [directory, program]
        prepared = {**arguments["prepared"], "program": program}
        if missing and source.archive:
            archive = self._connection._shell.join_path(directory, "source.tar")
            self._transfer_file(str(source.archive), archive)
            sent.append(archive)
            prepared["archive"] = archive
        self._fixup_perms2(sent)
        return self._call({**arguments, "state": "staged", "prepared": prepared}, variables)

    def _prepared(self, params: dict[str, Any], source: Source, variables: dict[str, Any]) -> dict[str, Any]:
        """The module's arguments: everything rendered, and the id that follows from it."""
        defaults = worker_defaults(params["engine"])
        config = [self._rendered(item, variables) for item in params["config"]]
        for reporter in defaults.reporters:
            text = (_REPORTERS / reporter).read_text(encoding="utf-8")
            config.append(_file(f"{_OURS}/{reporter}", "0640", text))
        environment = {str(name): _plain(name, value) for name, value in params["env"].items()}
        command = params["command"] or list(defaults.command)
        broker = without_secrets(params["broker_url"])
        queues = queue_groups(params["queues"])
        if params["routes"]:
            queues = with_tagged(queues, params["version"], defaults.apart)
        identity = {
            "engine": params["engine"],
            "source": source.digest,
            "config": sorted([item["dest"], item["mode"], _digest(item["content"])] for item in config),
            "environment": _digest(json.dumps(environment, sort_keys=True)),
            "broker": broker,
            "queues": queues,
            "processes": params["processes"],
            "command": command,
            "build": [words(item) for item in params["build"]],
            "user": params["user"],
            "supervisor": params["supervisor"],
        }
        own = defaults.command[0] if defaults.manifest else ""
        manifest = manifest_of(params["manifest"], command, own)
        # Only where it says something, so that a release without one keeps the id that it had before there were any.
        sealed = {
            "extends": list(defaults.extends),
            "barrier": params["rollback_barrier"].strip(),
            "hooks": hooks_of(params["hooks"]),
            "scheduler": scheduler_of(params["scheduler"]),
            # The engine's own follows from its command.
            "manifest": manifest_of(params["manifest"], command, ""),
        }
        identity.update({name: value for name, value in sealed.items() if value})
        if params["drill"]:
            # All the rest is on the hosts.
            identity = {"drill": params["drill"]}
        return {
            **params,
            "broker_url": for_workers(params["broker_url"]),
            "queues": queues,
            "command": command,
            "config": config,
            "env": environment,
            "prepared": {
                "id": release_id(params["version"], identity),
                "identity": identity,
                "broker": broker,
                "broker_variable": defaults.broker_variable,
                "extends": sealed["extends"],
                "manifest": manifest,
                "manifest_program": (_MANIFESTS / defaults.manifest).read_text("utf-8") if own else "",
                "program_digest": hashlib.sha256(build_host_program()).hexdigest(),
                "bytes": source.size,
            },
        }

    def _rendered(self, item: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        dest = Path(item["dest"])
        if dest.is_absolute() or ".." in dest.parts or str(dest) in (".", "environment"):
            raise BadInput(f"pool_config: dest '{dest}' has to be a path below config.", left="Nothing was changed.")
        if dest.parts[0] == _OURS:
            raise BadInput(f"pool_config: dest '{dest}' is where Backstep's files lie.", left="Nothing was changed.")
        if not re.fullmatch(r"0?[0-7]{3}", item["mode"]) or int(item["mode"], 8) & 0o022:
            raise BadInput(
                f"pool_config: mode '{item['mode']}' of {dest} has to be octal digits that let nobody else write.",
                left="Nothing was changed.",
            )
        if (item["src"] is None) == (item["content"] is None):
            raise BadInput(f"pool_config: {item['dest']} needs either src or content.", left="Nothing was changed.")
        text = item["content"] if item["src"] is None else self._template(item["src"], variables)
        return _file(str(dest), item["mode"].zfill(4), text)

    def _template(self, src: str, variables: dict[str, Any]) -> str:
        path = Path(src).expanduser().absolute()
        if not path.is_file():
            raise BadInput(f"pool_config: the template {path} is not there.", left="Nothing was changed.")
        lookup = lookup_loader.get("ansible.builtin.template", loader=self._loader, templar=self._templar)
        try:
            return str(lookup.run([str(path)], variables=variables)[0])
        except AnsibleError as error:
            raise BadInput(
                f"pool_config: the template {path} can't be rendered: {error.message}", left="Nothing was changed."
            ) from None


def _file(dest: str, mode: str, text: str) -> dict[str, str]:
    """A file of the release's config as the module expects it."""
    return {"dest": dest, "mode": mode, "content": base64.b64encode(text.encode("utf-8")).decode("ascii")}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _plain(name: Any, value: Any) -> str:
    if not _VARIABLE.fullmatch(str(name)) or str(name).startswith("BACKSTEP_"):
        raise BadInput(f"pool_env: '{name}' can't be the name of a variable.", left="Nothing was changed.")
    if value is None or isinstance(value, (dict, list)) or "\0" in str(value):
        raise BadInput(f"pool_env: {name} has to be a text or a number.", left="Nothing was changed.")
    return str(value)


def _download(url: str, target: Path) -> None:
    try:
        with open_url(url, timeout=_DOWNLOAD_SECONDS) as response, target.open("wb") as stream:
            for chunk in iter(lambda: response.read(1 << 20), b""):
                stream.write(chunk)
    except (OSError, ValueError) as error:
        raise unusable(f"{url} can't be had: {error}") from None
