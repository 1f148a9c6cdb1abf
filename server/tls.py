"""TLS on the gRPC port, from PEM files that are read again when they change."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import grpc
from chatkit_grpc.environment import SettingsError, read_file
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

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
        held = {name: read_file(name, path) for name, path in self._files.items()}
        _check_pair(held["TLS_CERTIFICATE"], held["TLS_KEY"])
        authority = held.get("TLS_CLIENT_CA")
        if authority is not None:
            _check_authority(authority)
        return grpc.ssl_server_certificate_configuration(
            [(held["TLS_KEY"], held["TLS_CERTIFICATE"])], root_certificates=authority
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


def _check_pair(certificate: bytes, key: bytes) -> None:
    """Raise SettingsError unless they belong together: gRPC itself would only say no to whoever connects."""
    try:
        chain = x509.load_pem_x509_certificates(certificate)
        found = serialization.load_pem_private_key(key, password=None)
        is_pair = found.public_key() == chain[0].public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        is_pair = False
    if not is_pair:
        raise SettingsError("TLS_CERTIFICATE, TLS_KEY: expected a certificate chain and its unencrypted key as PEM")


def _check_authority(certificates: bytes) -> None:
    try:
        x509.load_pem_x509_certificates(certificates)
    except ValueError:
        raise SettingsError("TLS_CLIENT_CA: expected certificates as PEM") from None
