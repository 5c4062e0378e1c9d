# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Redis connection whose every failure is one of Backstep's errors. For engines that keep their queues in Redis."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Callable, Optional, Union

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.connection import parse_url
    from redis.retry import Retry
except ImportError:  # ``open_engine`` refuses to go on without it, and says what to install
    redis = None  # type: ignore[assignment]  # so that this file can be read without it, as sanity does

from ..._rollout.errors import BackstepError, BrokerRefused, BrokerUnreachable
from ..._rollout.masking import scrub
from ..engine import unique
from ..url import check_url, clustered, in_words, watched
from ._cluster import Cluster, client_of
from ._sentinel import Sentinels
from ._witnesses import Place

_SCANNED_AT_ONCE = 1000
# After a fail-over clients try again at intervals that grow (Celery's to twelve seconds and more). Until then whoever
# is not connected may be alive all the same.
_GATHERING_SECONDS = 30.0
_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
# What a master says that has just become a replica.
_DEMOTED = re.compile(
    r"\bREADONLY\b|\bMASTERDOWN\b|^UNBLOCKED|link with MASTER is down|non local key", re.IGNORECASE
)
_COMMAND = re.compile(r"'([\w|]+)' (?:command|subcommand)", re.IGNORECASE)

Command = Sequence[Any]


def text(value: Any) -> str:
    """A Redis string as text; bytes that are no UTF-8 survive the way back."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value or "")


def acl_rule(*places: str) -> str:
    """What a user of Redis needs so that Backstep can do everything there: these keys and channels, and commands.

    Nothing that ends or reconfigures the server, or empties a database, is among them.
    """
    kinds = ("@read", "@write", "@scripting", "@transaction", "@connection", "@pubsub")
    single = ("info", "time", "client|list")
    return " ".join([*places, *(f"+{kind}" for kind in kinds), "-@dangerous", *(f"+{name}" for name in single)])


class RedisLink:
    """One Redis database, asked in whole pipelines and scripts, with a time-out on every answer.

    Under Sentinel it is the master's, and in a cluster the node's that has the pool's keys, which is made sure of
    before each question.
    """

    def __init__(self, url: str, timeout: float, rights: str, key: str = "") -> None:
        """:param rights: what the engine needs, as an ACL rule, for messages.
        :param key: any of the pool's keys, where all of them are in its slot of a cluster; "" where they are not.
        """
        self.url = check_url(url, _SCHEMES)
        self.timeout = timeout
        self._rights = rights
        self.shown = in_words(url)
        self._scripts: dict[str, Callable[..., Any]] = {}
        self._known = False
        self._place: Optional[Place] = None
        self._guide: Optional[Union[Sentinels, Cluster]] = None
        # One try per command: a wait for the broker is the caller's to decide on, by its own deadline.
        patience = {"retry": Retry(NoBackoff(), 0)}
        self._options = {"socket_timeout": timeout, "socket_connect_timeout": timeout, **patience}
        found, nodes = watched(url), clustered(url)
        self._server = found.server if found else nodes.server if nodes else url
        self._can_be_clustered = bool(key)
        try:
            if found:
                self._guide = Sentinels(found, url, timeout, patience)
            elif nodes:
                self._guide = Cluster(nodes, url, timeout, patience, key)
            self.database = int(parse_url(self._server).get("db") or 0)
            self._client = redis.Redis.from_url(self._server, **self._options)
        except (redis.RedisError, OSError, ValueError, TypeError) as error:
            raise self._unreachable(error) from None

    def close(self) -> None:
        """Give all connections back."""
        self._client.connection_pool.disconnect()
        if self._guide:
            self._guide.close()

    def ask(self, *command: Any) -> Any:
        """The answer to one command."""
        with self._translated() as client:
            return client.execute_command(*command)

    def ask_all(self, commands: Sequence[Command]) -> list[Any]:
        """The answers to several commands, taken at one instant (one transaction)."""
        with self._translated() as client:
            pipeline = client.pipeline(transaction=True)
            for command in commands:
                pipeline.execute_command(*command)
            return list(pipeline.execute())

    def ask_each(self, commands: Sequence[Command]) -> list[Any]:
        """The answers in one round trip; an answer may be an exception (a right that is missing), for ``refusal``."""
        with self._translated() as client:
            pipeline = client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            return list(pipeline.execute(raise_on_error=False))

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a Lua script: atomic, and nothing else runs meanwhile, so its work has to be bounded."""
        with self._translated() as client:
            if script not in self._scripts:
                self._scripts[script] = client.register_script(script)
            return self._scripts[script](keys=[], args=[_plain(argument) for argument in arguments], client=client)

    def pages(self, script: str, *arguments: Any, count: int) -> Iterator[list[Any]]:
        """What a script that scans tells, page by page: it takes a cursor and ``count`` as its last arguments, and the
        following cursor is the first thing that it answers.
        """
        cursor = b"0"
        while True:
            cursor, *answer = self.run(script, *arguments, cursor, count)
            yield answer
            if cursor == b"0":
                return

    def check(self, reading: Sequence[Command], prove: str) -> dict[str, Any]:
        """Facts about the server, as ``Engine.check`` gives them.

        :param reading: one harmless use of each command that reading takes.
        :param prove: a script that tries what writing takes under a scratch name, leaves nothing behind, and answers
            with each refused command and what was said; "" for none.
        :raises BrokerRefused: rights are missing; ``details['missing']`` lists them by name.
        """
        info, now = self.ask("INFO"), self.now()
        missing = [self._missing_right(said) for said in self.ask_each(reading) if isinstance(said, Exception)]
        if prove and not missing:
            said = [text(part) for part in self.run(prove, f"backstep-check-{uuid.uuid4().hex}")]
            missing = [f"+{command}" for command in said[::2]]
        if missing:
            raise BrokerRefused(
                f"The broker's user lacks rights on {self.shown}: {', '.join(unique(missing))}.",
                left="Nothing was changed.",
                next_step=f"Grant what Backstep needs with: ACL SETUSER <user> {self._rights}",
                missing=unique(missing),
            )
        return {
            "version": str(info["redis_version"]),
            "role": str(info["role"]),
            "address": self._address,
            "uptime": int(info["uptime_in_seconds"]),
            "time": now,
        }

    def now(self) -> float:
        """The server's clock (epoch seconds)."""
        seconds, micros = self.ask("TIME")
        return int(seconds) + int(micros) / 1e6

    def scan(self, kind: str, pattern: str = "*") -> set[str]:
        """The keys of one type that match, found in steps between which others are served.

        :param kind: as Redis's ``TYPE`` says it.
        """
        cursor, keys = b"0", set[str]()
        while True:
            cursor, some = self.ask("SCAN", cursor, "MATCH", pattern, "COUNT", _SCANNED_AT_ONCE, "TYPE", kind)
            keys.update(map(text, some))
            if text(cursor) in ("0", ""):
                return keys

    def clients(self) -> list[dict[str, str]]:
        """The connections, of all nodes of a cluster that have slots: which of them carry a name there is chance."""
        with self._translated() as client:
            found = list(client.client_list())
            for place in self._guide.masters if isinstance(self._guide, Cluster) else ():
                if place != self._place:
                    other = client_of(self._server, place, self._options)
                    found += other.client_list()
                    other.connection_pool.disconnect()
            return found

    def connected_names(self) -> Optional[set[str]]:
        """What the connections are named; ``None`` where that can't be seen, or some may be on their way still."""
        (clients,) = self.ask_each([("CLIENT LIST",)])
        if isinstance(clients, Exception) or self._gathering():
            return None
        return {client.get("name", "") for client in clients}

    def require_clients(self) -> None:
        """Refuse to conclude from who is connected, or listens, while some may not have found the new master yet.

        :raises BrokerUnreachable: another server was the master until a moment ago.
        """
        with self._translated():
            left = self._gathering()
        if left:
            raise BrokerUnreachable(
                f"The broker {self.shown} has a new master, which its workers may not all have found yet.",
                left="Which workers there are, and what they do, is unknown, and nothing is concluded from that.",
                next_step=f"Run again in {left:.0f} s.",
            )

    def _gathering(self) -> float:
        """For how many seconds more clients may be on their way from the master before this one."""
        reigns = self._guide.reigns if self._guide else None
        return 0.0 if reigns is None else max(0.0, _GATHERING_SECONDS - reigns)

    @property
    def _address(self) -> str:
        settings = self._client.connection_pool.connection_kwargs
        return str(settings.get("path") or f"{settings.get('host', 'localhost')}:{settings.get('port', 6379)}")

    @contextmanager
    def _translated(self) -> Iterator[redis.Redis]:
        """The client to use now; whatever goes wrong is one of Backstep's errors."""
        try:
            self._follow()
            if not self._known:
                self._refuse_unfit(self._client.info())
                self._known = True
            yield self._client
        except redis.RedisError as error:
            raise self._elsewhere(error) or self._error(error) from None
        except (OSError, ValueError, UnicodeError) as error:
            raise self._unreachable(error) from None

    def _follow(self) -> None:
        """Turn to the server that the sentinels call the master now, or that has the pool's slot of the cluster.

        Asked each time: one that has just been replaced goes on answering for some seconds, with what it had.
        """
        if not self._guide:
            return
        if isinstance(self._guide, Cluster) and not self._can_be_clustered:
            raise _clustered(self.shown, self._can_be_clustered)
        place = self._guide.master()
        if place == self._place:
            return
        self._client.connection_pool.disconnect()
        self._client = client_of(self._server, place, self._options)
        self._place, self._known = place, False

    def _refuse_unfit(self, info: dict[str, Any]) -> None:
        """Refuse a server whose answers would be wrong, before it is asked for anything."""
        if int(info.get("cluster_enabled", 0)) and not isinstance(self._guide, Cluster):
            raise _clustered(self.shown, self._can_be_clustered)
        if info.get("redis_mode") == "sentinel":
            raise BrokerRefused(
                f"{self.shown} is a sentinel, not a broker.",
                left="Nothing was changed.",
                next_step="Write the broker URL as redis+sentinel://host:26379,host:26379/name/0.",
            )
        if self._guide and info["role"] != "master":
            raise self._unreachable(redis.ConnectionError(f"{self._address} is a replica, not the master"))

    def _elsewhere(self, error: redis.RedisError) -> Optional[BackstepError]:
        """What a server's answer means that is not, or not alone, the one to ask; None when it isn't that."""
        elsewhere = (
            redis.exceptions.AskError, redis.exceptions.ClusterCrossSlotError, redis.exceptions.ClusterDownError
        )  # fmt: skip
        if isinstance(error, elsewhere) and not isinstance(self._guide, Cluster):
            return _clustered(self.shown, self._can_be_clustered)
        moved = isinstance(error, (*elsewhere, redis.ReadOnlyError)) or _DEMOTED.search(str(error))
        if self._guide and moved:
            return self._unreachable(error)
        return None

    def _error(self, error: redis.RedisError) -> BackstepError:
        said = scrub(str(error), self.url)
        if isinstance(error, redis.AuthenticationError):
            return BrokerRefused(
                f"The broker {self.shown} doesn't accept the user or the password: {said}.",
                left="Nothing was changed by this step.",
                next_step="Check the credentials in the broker URL.",
            )
        if isinstance(error, redis.ReadOnlyError):
            return BrokerRefused(
                f"The broker {self.shown} is a read-only replica: {said}.",
                left="Nothing was changed by this step.",
                next_step="Set the broker URL to the primary.",
            )
        if isinstance(error, redis.exceptions.NoPermissionError) or "ACL failure" in said:
            right = self._missing_right(error)
            return BrokerRefused(
                f"The broker's user lacks a right on {self.shown}: {right}. It said: {said}.",
                left="Nothing was changed by this step.",
                next_step=f"Grant what Backstep needs with: ACL SETUSER <user> {self._rights}",
                missing=[right],
            )
        if isinstance(error, redis.ResponseError):
            return BrokerRefused(
                f"The broker {self.shown} refused: {said}.",
                left="Nothing was changed by the command that it refused.",
                next_step="Check that the URL names the Redis database of this pool.",
            )
        return self._unreachable(error)

    def _missing_right(self, error: Exception) -> str:
        """The right that a NOPERM answer is about: a command as ACL rules write it, or what it said."""
        said = str(error)
        command = _COMMAND.search(said)
        if command:
            return f"+{command.group(1).lower()}"
        keys = " ".join(word for word in self._rights.split() if word[0] in "~&")
        return f"access to the keys {keys}" if "key" in said else said

    def _unreachable(self, error: Exception) -> BrokerUnreachable:
        said = scrub(str(error), self.url) or type(error).__name__
        self._known = False  # looked at anew before it is asked again
        return BrokerUnreachable(
            f"The broker {self.shown} gave no usable answer: {said}.",
            left="What it holds is unknown, and nothing is concluded from that.",
            next_step="Check that Redis runs there and can be reached from this machine, then run again.",
        )


def _clustered(shown: str, can_be: bool) -> BrokerRefused:
    if can_be:
        return BrokerRefused(
            f"The broker {shown} is a Redis Cluster, and its URL isn't that of one.",
            left="Nothing was changed.",
            next_step="Write the broker URL as redis+cluster://host:6379,host:6379/?prefix={bull}, or use Redis with "
            "Sentinel.",
        )
    return BrokerRefused(
        f"The broker {shown} is a Redis Cluster, which this engine doesn't support: it asks for several keys "
        "at one instant, and a cluster has these on different servers.",
        left="Nothing was changed.",
        next_step="Use one Redis for the queues, with Sentinel if it has to survive the loss of a server.",
    )


def _plain(argument: Any) -> Any:
    return argument.encode("utf-8", "surrogateescape") if isinstance(argument, str) else argument
