# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""AWX's REST API: requests and answers, and nothing of what they are for."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Iterator, Mapping
from typing import Any, Optional
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, HTTPSHandler, ProxyHandler, Request, build_opener

from .._rollout.errors import AwxRefused, AwxUnreachable, BadInput
from .._rollout.masking import hide

_SHOWN = 500


class _Stay(HTTPRedirectHandler):
    """Follows nobody: what a request carries is for the server that was named, and for no other."""

    def redirect_request(self, *_given: Any, **_more: Any) -> None:
        return None


class Api:
    """One AWX, as one user.

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
        self._server = f"{parts.scheme}://{parts.netloc}"
        self._prefix = f"/{prefix.strip('/')}/"
        self._timeout = timeout
        self._secrets = {token, password}
        basic = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._headers = {
            "Authorization": f"Bearer {token}" if token else f"Basic {basic}",
            "Content-Type": "application/json",
            "Accept": "application/json",
        }
        context = ssl.create_default_context(cafile=ca_file or None)
        self._opener = build_opener(ProxyHandler(), HTTPSHandler(context=context), _Stay())

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
            answer = self._ask("GET", f"{following.path}?{following.query}", {})

    def send(self, method: str, path: str, body: Optional[Mapping[str, Any]] = None) -> Any:
        """Change something."""
        return self._ask(method, self._prefix + path, {}, body)

    def _ask(self, method: str, path: str, query: Mapping[str, Any], body: Optional[Mapping[str, Any]] = None) -> Any:
        where = f"{path}?{urlencode(query)}" if query else path
        data = None if body is None else json.dumps(body).encode()
        request = Request(self._server + where, data, self._headers, method=method)  # noqa: S310 - checked before
        try:
            with self._opener.open(request, timeout=self._timeout) as answer:
                said = answer.read()
        except HTTPError as error:
            raise self._refused(method, path, error) from None
        except (URLError, OSError) as error:
            why = getattr(error, "reason", None) or error
            raise AwxUnreachable(
                f"{self._server} gave no answer to {method} {path}: {hide(str(why), self._secrets)}.",
                left="What was done before this is in AWX.",
                next_step="Run it again: what is done already isn't done twice.",
            ) from None
        try:
            return json.loads(said) if said else None
        except ValueError:
            raise AwxUnreachable(
                f"What answers {method} {path} at {self._server} isn't AWX's API.",
                next_step="Check the URL, and the prefix of the API.",
            ) from None

    def _refused(self, method: str, path: str, error: HTTPError) -> AwxRefused:
        # Hidden before it is cut: half a secret would be known by nobody.
        said = hide(" ".join(error.read().decode("utf-8", "replace").split()), self._secrets)
        said = said if len(said) <= _SHOWN else f"{said[:_SHOWN]}..."
        return AwxRefused(
            f"AWX refused {method} {path} ({error.code}): {said}",
            left="What was done before this is in AWX.",
            next_step="Mend what it says and run it again: what is done already isn't done twice.",
            status=error.code,
        )
