# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A RabbitMQ connection whose every failure is one of Backstep's errors. For engines that keep their queues there.

AMQP gives counts and tasks, both exact. The names of queues only the management API can tell; those it has at once,
while its figures are up to five seconds old (measured with 3.10). None of its figures is used.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Optional

try:
    import pika
    from pika import exceptions
    from pika.adapters.utils.connection_workflow import AMQPConnectorException
except ImportError:  # ``open_engine`` refuses to go on without it, and says what to install
    pika = None  # so that this file can be read without it, as sanity does

from ..._rollout.errors import BackstepError, BrokerRefused, BrokerUnreachable
from ..._rollout.masking import scrub
from ..._waiting.deadline import Deadline
from ..url import in_words
from ._amqp_management import Management
from ._amqp_url import Place, parse

OURS = "backstep."
_LOCK = f"{OURS}lock."
_HEARTBEAT_SECONDS = 30
# For the farewell to a broker that has not answered.
_FAREWELL_SECONDS = 0.1
_POLL_SECONDS = 0.02
_NOT_FOUND, _LOCKED, _NO_RIGHT, _OTHERWISE = 404, 405, 403, 406

if pika is not None:
    # It tells of every lost connection, on standard error, which is no place for an Ansible module.
    logging.getLogger("pika").addHandler(logging.NullHandler())
    logging.getLogger("pika").propagate = False

    class _Connection(pika.BlockingConnection):
        """One that waits only so long for any answer, where pika itself waits until the connection is lost."""

        answer_seconds = 0.0

        def _flush_output(self, *waiters: Any) -> None:
            late: list[bool] = []
            timer = self._impl._adapter_call_later(self.answer_seconds, lambda: late.append(True))
            try:
                super()._flush_output(*waiters, *([lambda: bool(late)] if waiters else []))
            finally:
                self._impl._adapter_remove_timeout(timer)
            if late and not any(ready() for ready in waiters):
                raise TimeoutError(f"no answer within {self.answer_seconds} s")


class AmqpLink:
    """One virtual host of a RabbitMQ broker, with a time-out on every answer."""

    def __init__(self, url: str, timeout: float, rights: str) -> None:
        """:param rights: what the engine needs, for messages."""
        self.url = url
        self.timeout = timeout
        self._rights = rights
        self._place: Place = parse(url)
        self.shown = in_words(url)
        self.management = Management(self._place, timeout, self)
        self._connection: Any = None
        self._locked = 0

    def close(self) -> None:
        """Give the connection back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(exceptions.AMQPError, OSError, TimeoutError):
                connection.close()

    @contextmanager
    def channel(self) -> Iterator[Any]:
        """A channel for one task. Its end gives back, in its old place, what was taken on it and not acknowledged.

        A classic queue has it all again when this returns, which is not so after a ``basic.nack`` (3.10).
        """
        with self.translated():
            channel = self._opened()
            try:
                yield channel
            finally:
                if channel.is_open:
                    channel.close()

    def count(self, queue: str) -> Optional[int]:
        """How many tasks wait in a queue, exactly; ``None`` when there is no such queue."""
        try:
            with self.channel() as channel:
                return int(channel.queue_declare(queue, passive=True).method.message_count)
        except _Closed as closed:
            if closed.reply_code == _NOT_FOUND:
                return None
            raise

    def declare(self, queue: str, arguments: Optional[dict[str, Any]] = None) -> None:
        """See to it that a durable queue of Backstep's own is there."""
        with self.channel() as channel:
            channel.queue_declare(queue, durable=True, arguments=arguments)

    def delete(self, queue: str) -> None:
        """Delete a queue of Backstep's own."""
        with self.channel() as channel:
            channel.queue_delete(queue)

    @contextmanager
    def locked(self, what: str) -> Iterator[None]:
        """Be the only Backstep that takes tasks, or counts them: what one has taken in order to look at it, another
        doesn't find. The lock is a queue of this connection's own, and goes with it, however it ends.

        :raises BrokerUnreachable: others didn't let go within the time-out.
        """
        name = f"{_LOCK}{what}"
        if not Deadline(self.timeout).wait_until(lambda: self._locks(name), _POLL_SECONDS):
            raise BrokerUnreachable(
                f"Somebody else's Backstep has been at work at {self.shown} for more than {self.timeout:.0f} s "
                f"(it has the queue {name}).",
                left="What waits there is unknown, and nothing is concluded from that.",
                next_step="Run again when that has ended.",
            )
        self._locked += 1
        try:
            yield
        finally:
            with suppress(BackstepError):  # it goes with the connection, too
                self.delete(name)
            self._locked -= 1

    def is_locked(self, what: str) -> bool:
        """Whether somebody has that lock now."""
        try:
            return self.count(f"{_LOCK}{what}") is not None
        except _Closed as closed:
            if closed.reply_code == _LOCKED:
                return True
            raise

    def _locks(self, name: str) -> bool:
        try:
            with self.channel() as channel:
                channel.queue_declare(name, exclusive=True)
        except _Closed as closed:
            if closed.reply_code == _LOCKED:
                return False
            raise
        return True

    def check(self, write: bool) -> dict[str, Any]:
        """Facts about the server, as ``Engine.check`` gives them.

        :param write: also try what moving takes, with a queue of Backstep's own that is gone again afterwards.
        :raises BrokerRefused: rights are missing; ``details['missing']`` lists them by name.
        """
        facts = self.management.facts()
        scratch = f"{OURS}check"
        with self._proving(f"configure {OURS}*"), self.locked("check"):
            if write:
                with self._proving("write amq.default"), self.channel() as channel:
                    channel.tx_select()
                    channel.basic_publish("", scratch, b"")  # to nobody
                    channel.tx_commit()
                self.declare(scratch)
                with self._proving("read"), self.channel() as channel:
                    channel.basic_get(scratch)
                self.delete(scratch)
        return facts

    @contextmanager
    def _proving(self, right: str) -> Iterator[None]:
        """Give what the broker refuses in here the name that it has in its own settings."""
        try:
            yield
        except _NoRight as error:
            if error.details["missing"] == [error.said]:
                raise self.no_right(right, error.said) from None
            raise

    def _opened(self) -> Any:
        """A new channel. A connection on which nothing was asked for long may have ended; then another one does."""
        if self._connection is not None:
            try:
                return self._connection.channel()
            except exceptions.AMQPError:
                self._drop()
        if self._locked:
            raise self.unreachable("the connection was lost, and its locks with it")
        self._connection = self._connect()
        return self._connection.channel()

    def _connect(self) -> Any:
        place = self._place
        found = _Connection(
            pika.ConnectionParameters(
                host=place.host,
                port=place.port,
                virtual_host=place.vhost,
                credentials=pika.PlainCredentials(place.user, place.password, erase_on_connect=True),
                ssl_options=pika.SSLOptions(ssl.create_default_context(), place.host) if place.tls else None,
                heartbeat=_HEARTBEAT_SECONDS,
                connection_attempts=1,
                socket_timeout=self.timeout,
                stack_timeout=self.timeout,
                blocked_connection_timeout=self.timeout,
                client_properties={"connection_name": "backstep"},
            )
        )
        found.answer_seconds = self.timeout
        return found

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Everything that goes wrong on the way, as one of Backstep's errors."""
        try:
            yield
        except exceptions.ChannelClosedByBroker as error:
            raise self._refused(error) from None
        except (exceptions.AMQPError, AMQPConnectorException, OSError, ValueError, UnicodeError) as error:
            self._drop()
            raise self._lost(error) from None

    def _drop(self) -> None:
        """Forget a connection of which it isn't known what it would answer next."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.answer_seconds = _FAREWELL_SECONDS
            with suppress(exceptions.AMQPError, OSError, ValueError):
                connection.close()

    def _refused(self, error: Any) -> BrokerRefused:
        said = scrub(error.reply_text, self.url)
        if error.reply_code == _NO_RIGHT:
            return self.no_right(said, said)
        return _Closed(
            f"The broker {self.shown} refused: {said}.",
            left="Nothing was changed by the command that it refused.",
            next_step="Check that the URL names the virtual host of this pool.",
            reply_code=error.reply_code,
        )

    def no_right(self, right: str, said: str) -> BrokerRefused:
        """A missing right as an error."""
        return _NoRight(
            f"The broker's user lacks a right on {self.shown}: {said}.",
            left="Nothing was changed by this step.",
            next_step=f"Grant what Backstep needs with: {self._rights}",
            missing=[right],
            said=said,
        )

    def _lost(self, error: Exception) -> BackstepError:
        refused = (
            exceptions.ProbableAuthenticationError, exceptions.AuthenticationError,
            exceptions.ProbableAccessDeniedError,
        )  # fmt: skip
        closed = isinstance(error, exceptions.ConnectionClosedByBroker) and error.reply_code in (_NO_RIGHT, 530)
        said = scrub(str(error), self.url) or type(error).__name__
        if isinstance(error, refused) or closed:
            return BrokerRefused(
                f"The broker {self.shown} doesn't accept the user, the password or the virtual host: {said}.",
                left="Nothing was changed by this step.",
                next_step="Check the credentials in the broker URL.",
            )
        return self.unreachable(said)

    def unreachable(self, said: str) -> BrokerUnreachable:
        """That there was no answer."""
        return BrokerUnreachable(
            f"The broker {self.shown} gave no usable answer: {said}.",
            left="What it holds is unknown, and nothing is concluded from that.",
            next_step="Check that RabbitMQ runs there and can be reached from this machine, then run again.",
        )


class _NoRight(BrokerRefused):
    """The user may not do this."""

    @property
    def said(self) -> str:
        """In the broker's own words."""
        return str(self.details["said"])


class _Closed(BrokerRefused):
    """The broker closed a channel, and said why."""

    @property
    def reply_code(self) -> int:
        """AMQP's number for why."""
        return int(self.details["reply_code"])
