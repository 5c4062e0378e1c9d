# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""AWX's REST API: requests and answers, and nothing of what they are for."""

from __future__ import annotations

import ssl
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Optional
from urllib.parse import urlsplit

try:
    import requests
    from awxkit.api.client import Connection
    from awxkit.config import config
    from requests.adapters import HTTPAdapter
except ImportError:  # ``Api`` refuses to go on without it, and says what to install
    Connection, HTTPAdapter = None, object  # type: ignore[assignment,misc]  # so that sanity can read this file without

from .._rollout.errors import AwxRefused, AwxUnreachable, BadInput
from .._rollout.masking import hide

_SHOWN = 500


class _Patient(HTTPAdapter):
    """Waits for an answer so long and no longer, as awxkit itself waits forever."""

    def __init__(self, timeout: float) -> None:
        super().__init__()
        self._timeout = timeout

    def send(self, request: Any, **given: Any) -> Any:  # type: ignore[override]  # requests hands all over by name
        return super().send(request, **{**given, "timeout": self._timeout})


class Api:
    """One AWX, as one user, through awxkit's connection.

    :param url: such as ``https://awx.example.org``.
    :param prefix: where its API begins, such as ``/api/v2/``.
    :param token: an OAuth token; without one, ``user`` and ``password`` count.
    :param ca_file: the certificates to trust, or "" for the system's.
    :param timeout: seconds for one answer.
    :raises BadInput: a URL that is none, or nobody to be.
    """

    def __init__(
        self, url: str, prefix: str, token: str, user: str, password: str, ca_file: str, timeout: float
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise BadInput("The URL of AWX has to be as https://awx.example.org.", left="Nothing was changed.")
        if not token and not (user and password):
            raise BadInput(
                "AWX has to know who asks.",
                left="Nothing was changed.",
                next_step="Give a token, or user and password.",
            )
        if Connection is None:
            raise BadInput(
                f"Python package 'awxkit' is needed to talk to AWX; {sys.executable} has none.",
                left="Nothing was changed.",
                next_step=f"{sys.executable} -m pip install awxkit",
            )
        self._server = f"{parts.scheme}://{parts.netloc}"
        self._prefix = f"/{prefix.strip('/')}/"
        self._secrets = {token, password}
        system = ssl.get_default_verify_paths()
        self._connection = Connection(self._server, verify=ca_file or system.cafile or system.capath or True)
        self._connection.login(**({"token": token} if token else {"username": user, "password": password}))
        session = self._connection.session
        # Follows nobody: what a request carries is for the server that was named, and for no other.
        session.max_redirects = 0
        for scheme in ("http://", "https://"):
            session.mount(scheme, _Patient(timeout))
        # Whether a request that got no answer has been carried out isn't known, so that it isn't sent again by itself.
        config.client_connection_attempts = 1

    def hide(self, *secrets: str) -> None:
        """Never tell these, whatever AWX says."""
        self._secrets |= set(secrets)

    def get(self, path: str, **query: Any) -> Any:
        """What is at a path below the prefix."""
        return self._ask("GET", self._prefix + path, query)

    def every(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        """Every object of a list, however many pages it has."""
        answer = self.get(path, page_size=200, **query)
        while True:
            yield from answer["results"]
            if not answer.get("next"):
                return
            # Only its path and query: behind a proxy AWX doesn't always know its own name.
            following = urlsplit(answer["next"])
            answer = self._ask("GET", f"{following.path}?{following.query}")

    def send(self, method: str, path: str, body: Optional[Mapping[str, Any]] = None) -> Any:
        """Change something."""
        return self._ask(method, self._prefix + path, body=body)

    def _ask(
        self,
        method: str,
        path: str,
        query: Optional[Mapping[str, Any]] = None,
        body: Optional[Mapping[str, Any]] = None,
    ) -> Any:
        try:
            answer = self._connection.request(path, method.lower(), json=body, query_parameters=query)
            said = answer.content
        except (requests.RequestException, OSError) as why:
            raise AwxUnreachable(
                f"{self._server} gave no answer to {method} {path}: {hide(str(why), self._secrets)}.",
                left="What was done before this is in AWX.",
                next_step="Run it again: what is done already isn't done twice.",
            ) from None
        if answer.status_code >= 400:
            raise self._refused(method, path, answer.status_code, answer.text)
        try:
            return answer.json() if said else None
        except ValueError:
            raise AwxUnreachable(
                f"What answers {method} {path} at {self._server} isn't AWX's API.",
                next_step="Check the URL, and the prefix of the API.",
            ) from None

    def _refused(self, method: str, path: str, status: int, said: str) -> AwxRefused:
        # Hidden before it is cut: half a secret would be known by nobody.
        said = hide(" ".join(said.split()), self._secrets)
        said = said if len(said) <= _SHOWN else f"{said[:_SHOWN]}..."
        return AwxRefused(
            f"AWX refused {method} {path} ({status}): {said}",
            left="What was done before this is in AWX.",
            next_step="Mend what it says and run it again: what is done already isn't done twice.",
            status=status,
        )
