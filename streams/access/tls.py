"""TLS contexts from PEM files, for the clients that take a Python context, and to refuse unusable files at the start.

librdkafka and redis-py read the same files by themselves; a context that can be made here can be made there.
"""

import os
import ssl
from dataclasses import dataclass
from typing import NoReturn

from streams.errors import SettingsError


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """What TLS is made of. ``name`` is the beginning of the settings' names, such as ``MARGIN_KAFKA__``.

    Without ``ca`` (a file, or a folder of hashed certificates) the system's certificates are trusted. ``certificate``
    and ``key`` are this client's, both or neither. ``crl`` is a file of revocation lists.
    """

    name: str
    ca: str = ""
    certificate: str = ""
    key: str = ""
    key_password: str = ""
    verify: bool = True
    check_hostname: bool = True
    ciphers: str = ""
    crl: str = ""


def context(files: TlsFiles) -> ssl.SSLContext:
    """A client's context that trusts and shows what ``files`` says.

    Certificates are judged as librdkafka does, which knows no strict mode (RFC 5280, Python's default from 3.13 on):
    one role must not refuse what the others accept.

    Raises:
        SettingsError: a file cannot be read or used; says which setting names it.
    """
    for setting, path in (
        ("SSL_CA_LOCATION", files.ca),
        ("SSL_CERTIFICATE_LOCATION", files.certificate),
        ("SSL_KEY_LOCATION", files.key),
        ("OPTIONS: ssl.crl.location", files.crl),
    ):
        if path and not os.access(path, os.R_OK):
            reason = "cannot be read" if os.path.exists(path) else "there is no such file"
            raise SettingsError(f"{files.name}{setting}={path}: {reason}")
    made = ssl.create_default_context() if not files.ca else _trusting(files)
    made.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not files.check_hostname or not files.verify:
        made.check_hostname = False
    if not files.verify:
        made.verify_mode = ssl.CERT_NONE
    if files.certificate:
        _show(made, files)
    if files.ciphers:
        try:
            made.set_ciphers(files.ciphers)
        except ssl.SSLError:
            raise SettingsError(
                f"{files.name}OPTIONS: ssl.cipher.suites={files.ciphers}: there are none such"
            ) from None
    if files.crl:
        try:
            made.load_verify_locations(cafile=files.crl)
        except ssl.SSLError as error:
            raise SettingsError(f"{files.name}OPTIONS: ssl.crl.location={files.crl}: {_reason(error)}") from None
        made.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    return made


def _trusting(files: TlsFiles) -> ssl.SSLContext:
    try:
        if os.path.isdir(files.ca):
            return ssl.create_default_context(capath=files.ca)
        return ssl.create_default_context(cafile=files.ca)
    except (ssl.SSLError, OSError) as error:
        raise SettingsError(
            f"{files.name}SSL_CA_LOCATION={files.ca}: no certificates in PEM form in it ({_reason(error)})"
        ) from None


def _show(made: ssl.SSLContext, files: TlsFiles) -> None:
    where = f"{files.name}SSL_CERTIFICATE_LOCATION={files.certificate} with {files.name}SSL_KEY_LOCATION={files.key}"
    try:
        made.load_cert_chain(files.certificate, files.key, password=lambda: files.key_password or _ask_nobody(files))
    except ssl.SSLError as error:
        about = "the key cannot be opened, is SSL_KEY_PASSWORD right?" if files.key_password else "in PEM form?"
        if error.reason == "KEY_VALUES_MISMATCH":
            about = "the key is not that of the certificate"
        raise SettingsError(f"{where}: {about} ({_reason(error)})") from None
    except OSError as error:
        raise SettingsError(f"{where}: {error.strerror or 'cannot be read'}") from None


def _ask_nobody(files: TlsFiles) -> NoReturn:
    """Without this OpenSSL would ask on the terminal."""
    raise SettingsError(f"{files.name}SSL_KEY_LOCATION={files.key} is encrypted: give {files.name}SSL_KEY_PASSWORD")


def _reason(error: OSError) -> str:
    reason = getattr(error, "reason", None) or error.strerror or type(error).__name__
    return str(reason).lower().replace("_", " ")
