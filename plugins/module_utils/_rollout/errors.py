# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that Backstep refuses or fails at, as types.

Code below the modules raises these; ``_module.run`` is the one place that turns them into ``fail_json``, and the host
program's ``main`` the one place that turns them into an exit code.
"""

from __future__ import annotations

from typing import Any


class BackstepError(Exception):
    """A foreseeable failure, told in three parts: what happened, what was left as it was, what to type next.

    :param message: what happened, one sentence.
    :param left: what was left as it was (for example "Nothing was changed."), or "".
    :param next_step: what a person can type or do next, or "".
    :param details: plain JSON-able facts for programs (never a secret).
    """

    code = "backstep_error"

    def __init__(self, message: str, *, left: str = "", next_step: str = "", **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.left = left
        self.next_step = next_step
        self.details = details

    def __str__(self) -> str:
        return " ".join(part for part in (self.message, self.left, self.next_step) if part)

    def result(self) -> dict[str, Any]:
        """The failure as a module result: ``msg`` for people, ``error`` for programs."""
        return {
            "msg": str(self),
            "error": {
                "code": self.code,
                "message": self.message,
                "left": self.left,
                "next": self.next_step,
                "details": self.details,
            },
        }


class BadInput(BackstepError):
    """A value that the user gave can't be used."""

    code = "bad_input"


class HostUnfit(BackstepError):
    """The host can't take part: no privilege, no disk, a root path that is a file, no supervisor."""

    code = "host_unfit"


def refused_by_system(error: OSError, doing: str) -> HostUnfit:
    """A failure of the operating system as one of ours: a full disk, a file system that went read-only, no right."""
    where = f" ({error.filename})" if error.filename else ""
    return HostUnfit(
        f"{doing}: {error.strerror or error}{where}.",
        left="What runs goes on; every step that was begun is in the journal.",
        next_step="Mend what the message says and run the same command again: it goes on from there.",
    )


class DrillRefused(BackstepError):
    """The pool may not, or can't, be drilled now."""

    code = "drill_refused"


class LeaseHeld(BackstepError):
    """Somebody else holds the lease of this host."""

    code = "lease_held"


class HostSilent(BackstepError):
    """The host has given no answer in time: unknown, and never the same as a refusal."""

    code = "host_silent"


class StaleToken(BackstepError):
    """The step carries a token that the host has since given to somebody else, or that has expired."""

    code = "stale_token"


class StepOutOfOrder(BackstepError):
    """The host's journal doesn't allow this step now."""

    code = "step_out_of_order"


class RollbackFailed(BackstepError):
    """The last good release could not be brought back; nothing is disturbed before it stays up, or a person decides."""

    code = "rollback_failed"


class JournalDamaged(BackstepError):
    """The journal was changed or cut before its last line; no step is taken on such a host."""

    code = "journal_damaged"


class ReleaseDamaged(BackstepError):
    """A stored release is missing, unsealed, or not byte for byte what was sealed."""

    code = "release_damaged"


class ReleaseRefused(BackstepError):
    """The release may not be a target: it is quarantined as bad, or was never finished."""

    code = "release_refused"


class NoGoodRelease(BackstepError):
    """There is no good release to go back to."""

    code = "no_good_release"


class RollbackBarrier(BackstepError):
    """A release on the way declares that it can't be undone, and nobody has asked to cross that barrier."""

    code = "rollback_barrier"


class HookFailed(BackstepError):
    """The host is where it was asked to be, but a hook on the way has failed."""

    code = "hook_failed"


class TasksStranded(BackstepError):
    """Tasks wait that the release can't run."""

    code = "tasks_stranded"


class ReplayStopped(BackstepError):
    """Tasks that were put back failed again, or didn't end in time."""

    code = "replay_stopped"


class BuildFailed(BackstepError):
    """A build command of the release failed."""

    code = "build_failed"


class DrainTimeout(BackstepError):
    """Tasks were still executing at the drain's deadline."""

    code = "drain_timeout"


class SupervisorError(BackstepError):
    """The supervisor refused, or could not be asked."""

    code = "supervisor_error"


class BrokerUnreachable(BackstepError):
    """The broker gave no answer, or no usable one. Never the same as an empty answer."""

    code = "broker_unreachable"


class BrokerRefused(BackstepError):
    """The broker answered and refused: a missing right, a wrong password, a read-only replica."""

    code = "broker_refused"


class PauseRefused(BackstepError):
    """The pause belongs to somebody else, or would reach further than was agreed to."""

    code = "pause_refused"


class GateRefused(BackstepError):
    """A gate that must not be: of a retired name, or one to which not every worker would keep."""

    code = "gate_refused"


class RouteRefused(BackstepError):
    """A route that must not be: it is somebody else's, or nobody listens where it leads."""

    code = "route_refused"


class AwxUnreachable(BackstepError):
    """AWX gave no answer, or none that is its API's."""

    code = "awx_unreachable"


class AwxRefused(BackstepError):
    """AWX answered and refused, or something that was named isn't there."""

    code = "awx_refused"
