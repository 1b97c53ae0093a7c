"""Certificates and keys that cannot be used are refused at the start, with the setting's name and without a secret."""

import ssl
from pathlib import Path

import pytest

from streams.access import tls
from streams.errors import SettingsError
from streams.settings import load
from streams.tables.connection import connection_properties
from tests.security.certificates import Authority, Identity
from tests.security.marks import assert_untold

PASSWORD = "Mrk9Qz-of-the-key"
KAFKA = {"MARGIN_KAFKA__SECURITY_PROTOCOL": "SSL"}
REDIS = {"MARGIN_REDIS__URL": "rediss://h"}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def plain(authority: Authority) -> Identity:
    return authority.sign("plain")


@pytest.fixture(scope="module")
def locked(authority: Authority) -> Identity:
    return authority.sign("locked", password=PASSWORD)


def client(section: str, certificate: Path, key: Path, password: str = "") -> dict[str, str]:
    return (KAFKA if section == "KAFKA" else REDIS) | {
        f"MARGIN_{section}__SSL_CERTIFICATE_LOCATION": str(certificate),
        f"MARGIN_{section}__SSL_KEY_LOCATION": str(key),
        f"MARGIN_{section}__SSL_KEY_PASSWORD": password,
    }


@pytest.mark.parametrize("section", ["KAFKA", "REDIS"])
def test_a_key_is_opened_and_must_be_the_certificate_s(section: str, plain: Identity, locked: Identity) -> None:
    load(client(section, plain.certificate, plain.key))
    load(client(section, locked.certificate, locked.key, PASSWORD))
    load(client(section, plain.both, plain.both))
    wrong = [
        (client(section, locked.certificate, locked.key), f"MARGIN_{section}__SSL_KEY_PASSWORD"),
        (client(section, locked.certificate, locked.key, "Mrk9Qz-wrong"), "SSL_KEY_PASSWORD right"),
        (client(section, plain.certificate, locked.key, PASSWORD), "not that of the certificate"),
        (client(section, plain.key, plain.certificate), "in PEM form"),
        (client(section, plain.certificate, Path("/nowhere/key")), "no such file"),
    ]
    for environment, said in wrong:
        with pytest.raises(SettingsError, match=said) as refused:
            load(environment)
        assert f"MARGIN_{section}__SSL_KEY_LOCATION" in str(refused.value)
        assert_untold(str(refused.value), "the error")


@pytest.mark.parametrize("section", ["KAFKA", "REDIS"])
def test_an_authority_may_be_a_file_or_a_folder(section: str, authority: Authority, tmp_path: Path) -> None:
    base = KAFKA if section == "KAFKA" else REDIS
    for place in (authority.path, tmp_path):
        load(base | {f"MARGIN_{section}__SSL_CA_LOCATION": str(place)})
    (tmp_path / "no.pem").write_text("-----BEGIN CERTIFICATE-----\nnot one\n-----END CERTIFICATE-----\n")
    with pytest.raises(SettingsError, match="SSL_CA_LOCATION"):
        load(base | {f"MARGIN_{section}__SSL_CA_LOCATION": str(tmp_path / "no.pem")})


@pytest.mark.parametrize(
    ("options", "mode", "hostname"),
    [
        ("", ssl.CERT_REQUIRED, True),
        ("ssl.endpoint.identification.algorithm=none", ssl.CERT_REQUIRED, False),
        ("enable.ssl.certificate.verification=false", ssl.CERT_NONE, False),
    ],
)
def test_the_oracle_s_context_checks_what_librdkafka_checks(options: str, mode: ssl.VerifyMode, hostname: bool) -> None:
    files = load(KAFKA | {"MARGIN_KAFKA__OPTIONS": options}).kafka.tls
    assert files is not None
    context = tls.context(files)
    assert (context.verify_mode, context.check_hostname) == (mode, hostname)
    assert not context.verify_flags & ssl.VERIFY_X509_STRICT


@pytest.mark.parametrize(
    ("query", "requirement", "hostname"),
    [
        ("", "required", True),
        ("?ssl_check_hostname=false", "required", False),
        ("?ssl_cert_reqs=none", "none", False),
    ],
)
def test_redis_is_checked_as_its_url_says(query: str, requirement: str, hostname: bool) -> None:
    properties = connection_properties(load({"MARGIN_REDIS__URL": f"rediss://h{query}"}).redis)
    assert (properties["ssl_cert_reqs"], properties["ssl_check_hostname"]) == (requirement, hostname)


def test_ciphers_and_revocations_reach_the_oracle_s_context(authority: Authority) -> None:
    files = load(KAFKA | {"MARGIN_KAFKA__OPTIONS": "ssl.cipher.suites=ECDHE-RSA-AES256-GCM-SHA384"}).kafka.tls
    assert files is not None
    names = {cipher["name"] for cipher in tls.context(files).get_ciphers()}
    assert "ECDHE-RSA-AES256-GCM-SHA384" in names
    assert "ECDHE-RSA-AES128-GCM-SHA256" not in names
    with pytest.raises(SettingsError, match=r"ssl\.cipher\.suites"):
        load(KAFKA | {"MARGIN_KAFKA__OPTIONS": "ssl.cipher.suites=NONE-SUCH"})
    with pytest.raises(SettingsError, match=r"ssl\.crl\.location"):
        load(KAFKA | {"MARGIN_KAFKA__OPTIONS": "ssl.crl.location=/nowhere"})
    revoking = authority.revoke()
    files = load(KAFKA | {"MARGIN_KAFKA__OPTIONS": f"ssl.crl.location={revoking}"}).kafka.tls
    assert files is not None
    assert tls.context(files).verify_flags & ssl.VERIFY_CRL_CHECK_LEAF
