"""TLS on the gRPC port, from PEM files that are read again when they change."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path
from typing import Any

import grpc
from chatkit_grpc.environment import SettingsError

from server.settings import Settings

log = logging.getLogger(__name__)


def server_credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """The credentials of the settings; None where the port speaks plaintext. Raises SettingsError for unusable files.

    With TLS_CLIENT_CA only clients are let in that have a certificate of that authority.
    """
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    files = CertificateFiles(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
    fetch: Any = files.read_if_changed  # that it may be None, and what that means, is missing in its type
    return grpc.dynamic_ssl_server_credentials(
        files.read(), fetch, require_client_authentication=settings.tls_client_ca is not None
    )


class CertificateFiles:
    """The files of a certificate. gRPC asks at each new connection whether they have changed."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._files = {"TLS_CERTIFICATE": certificate, "TLS_KEY": key}
        if client_ca is not None:
            self._files["TLS_CLIENT_CA"] = client_ca
        self._seen: object = None

    def read(self) -> grpc.ServerCertificateConfiguration:
        """What the files hold. Raises SettingsError, which names the one that is no good."""
        self._seen = self._stamp()
        held = {name: _read(name, path) for name, path in self._files.items()}
        self._check()
        return grpc.ssl_server_certificate_configuration(
            [(held["TLS_KEY"], held["TLS_CERTIFICATE"])], root_certificates=held.get("TLS_CLIENT_CA")
        )

    def read_if_changed(self) -> grpc.ServerCertificateConfiguration | None:
        """What the files hold now; None where that is what they held before, or can't be used: the old one goes on."""
        if self._stamp() == self._seen:
            return None
        try:
            configuration = self.read()
        except SettingsError as error:
            # Half of a new pair may be there already; it is looked at again once the other half is.
            log.warning("the new certificate can't be used: %s", error)
            return None
        log.info("a new certificate is in use")
        return configuration

    def _stamp(self) -> object:
        try:
            return [(stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in map(Path.stat, self._files.values())]
        except OSError:
            return None

    def _check(self) -> None:
        """Raise SettingsError unless key and certificate belong together, and the authority's file holds one."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self._files["TLS_CERTIFICATE"], self._files["TLS_KEY"], password=_no_password)
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"TLS_CERTIFICATE, TLS_KEY: expected a certificate chain and its unencrypted key as PEM ({_why(error)})"
            ) from None
        if path := self._files.get("TLS_CLIENT_CA"):
            try:
                context.load_verify_locations(path)
            except (OSError, ValueError) as error:
                raise SettingsError(f"TLS_CLIENT_CA: expected certificates as PEM ({_why(error)})") from None


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{name}: can't read {path}: {error.strerror}") from None


def _no_password() -> str:
    raise ValueError("the key is encrypted")


def _why(error: Exception) -> str:
    return error.reason if isinstance(error, ssl.SSLError) and error.reason else str(error) or type(error).__name__
