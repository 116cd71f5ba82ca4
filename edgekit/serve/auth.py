"""Who may ask: bearer tokens, each for what it may do."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import stat
from pathlib import Path

from edgekit.errors import InputError, UsageError
from edgekit.serve.http_messages import Handler, HttpRequest, Respond, error_response
from edgekit.serve.messages import RequestError
from edgekit.serve.paths import parts_of, path_of

LOGGER = logging.getLogger(__name__)

HEALTH, INFER, CONTROL = "health", "infer", "control"
SCOPES = (INFER, CONTROL)

SHORTEST = 16
"""Characters that a token has at least: shorter ones are found by trying."""

_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")
_CONTROL_CALLS = frozenset((b"RepositoryModelLoad", b"RepositoryModelUnload", b"TraceSetting", b"LogSettings"))
_HEALTH_CALLS = frozenset((b"ServerLive", b"ServerReady", b"Check"))


class Tokens:
    """The tokens in a file: a line each, `TOKEN` or `TOKEN SCOPE…`; infer is what a token may if nothing is said.

    Scopes: infer (all questions and inference) and control (also load and unload models, and change traces and the
    log). Lines that are empty or begin with # are passed over. With `open_health`, health is told to everybody.
    """

    def __init__(self, path: Path, *, open_health: bool = True) -> None:
        """Raises UsageError: the file cannot be read, or is not one of tokens."""
        self.path, self.open_health = path, open_health
        self._known = _read(path)

    def reload(self) -> None:
        """Read the file again. Raises UsageError; then the tokens are those from before."""
        self._known = _read(self.path)

    @property
    def any_control(self) -> bool:
        """Whether a token may control the server."""
        return any(CONTROL in scopes for _, scopes in self._known)

    def check(self, authorization: bytes | None, scope: str) -> None:
        """Raises RequestError: no token that is known here (401), or not one for `scope` (403)."""
        kind, _, given = (authorization or b"").strip().partition(b" ")
        if kind.lower() != b"bearer" or not given:
            raise RequestError(401, "This server asks for a token. Send the header Authorization: Bearer TOKEN.")
        digest = hashlib.sha256(given.strip()).digest()
        scopes: frozenset[str] = frozenset()
        known = False
        for one, allowed in self._known:  # all of them, whichever it is: time tells nothing
            if hmac.compare_digest(one, digest):
                known, scopes = True, allowed
        if not known:
            raise RequestError(401, "The token is not known to this server.")
        if scope != HEALTH and scope not in scopes:
            raise RequestError(403, f"The token is not for this: it needs the scope {scope}.")

    def check_http(self, target: bytes, authorization: bytes | None) -> None:
        """As `check`, for a request to `target`."""
        scope = _scope_of(target)
        if scope is not None and not (scope == HEALTH and self.open_health):
            self.check(authorization, scope)

    def check_call(self, path: bytes, authorization: bytes | None) -> None:
        """As `check`, for a call of the gRPC method at `path`."""
        name = path.rpartition(b"/")[2]
        scope = HEALTH if name in _HEALTH_CALLS else CONTROL if name in _CONTROL_CALLS else INFER
        if not (scope == HEALTH and self.open_health):
            self.check(authorization, scope)

    def guard(self, handle: Handler) -> Handler:
        """`handle`, for those only that may."""

        def guarded(request: HttpRequest, respond: Respond) -> None:
            try:
                self.check_http(request.target, request.headers.get(b"authorization"))
            except (InputError, RequestError) as error:
                response = error_response(error)
                if response.status == 401:
                    response.headers += b'WWW-Authenticate: Bearer realm="edgekit"\r\n'
                respond(response)
                return
            handle(request, respond)

        return guarded


def _scope_of(target: bytes) -> str | None:
    """What a request to `target` needs; None where anybody may know the answer."""
    match parts_of(path_of(target)):
        case ["", "" | "page.js" | "page.css"]:  # the page itself, which knows nothing
            return None
        case ["", "v2", "health", *_]:
            return HEALTH
        case ["", "v2", "repository", "models", *_] | ["", "v2", "logging", *_] | ["", "v2", *_, "trace", "setting"]:
            return CONTROL
    return INFER


def _read(path: Path) -> tuple[tuple[bytes, frozenset[str]], ...]:
    try:
        text = path.read_text(encoding="utf-8")
        mode = path.stat().st_mode
    except OSError as error:
        raise UsageError(f"Token file '{path}' cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"Token file '{path}' is not text.") from error
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        LOGGER.warning("every user of this machine can read or write token file '%s'; try: chmod 600 %s", path, path)
    known = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        token, *scopes = line.split()
        if _TOKEN.fullmatch(token) is None or len(token) < SHORTEST:
            raise UsageError(
                f"Token file '{path}', line {number}: expected {SHORTEST} or more letters, digits and -._~+/, "
                "then the token's scopes. Make one with: openssl rand -hex 32"
            )
        wrong = [s for s in scopes if s not in SCOPES]
        if wrong:
            raise UsageError(
                f"Token file '{path}', line {number}: there is no scope '{wrong[0]}'; there are infer and control."
            )
        allowed = frozenset(scopes or [INFER]) | ({INFER} if CONTROL in scopes else set())
        known.append((hashlib.sha256(token.encode()).digest(), allowed))
    if not known:
        raise UsageError(f"Token file '{path}' holds no token. Make one with: openssl rand -hex 32")
    return tuple(known)
