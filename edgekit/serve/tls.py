"""TLS for both doors: certificates from files that are read again on request, and clients that must show one."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """PEM files: the server's certificate with its chain, its key, and the authority that clients' must come from."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    def context(self, protocol: str) -> ssl.SSLContext:
        """A context of TLS 1.2 or later that agrees on `protocol` by ALPN (http/1.1, h2).

        Raises:
            UsageError: a file cannot be read, or certificate and key are no pair.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.set_alpn_protocols([protocol])
        try:
            context.load_cert_chain(self.cert, self.key, password=_no_password)
        except OSError as error:
            raise UsageError(
                f"Certificate '{self.cert}' and key '{self.key}' cannot be used: {_why(error)}. "
                "Expected PEM files that belong together, the key without a password."
            ) from error
        if self.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                context.load_verify_locations(self.client_ca)
            except OSError as error:
                raise UsageError(f"Authority '{self.client_ca}' cannot be used: {_why(error)}.") from error
        return context


def _no_password() -> str:
    raise OSError("the key has a password")


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).lower().replace("_", " ")
    return error.strerror or str(error)
