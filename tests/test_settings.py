"""What is a setting, what is none, what contradicts what, and what set each value."""

import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from streams import redaction
from streams.access.kafka_properties import PINNED, SETTINGS, SHARED, TLS, TUNING, sort_properties
from streams.access.redis_address import holds_password, masked_url, parse_url
from streams.broker import config
from streams.errors import SettingsError
from streams.settings import SECRETS, KafkaSettings, RedisSettings, Settings, describe, load, read, variable
from streams.tables.connection import connection_properties
from tests.properties import examples

ROOT = Path(__file__).resolve().parents[1]
PLACES = [(section, field) for section, fields in describe(Settings()).items() for field in fields]
NAMES = [variable(*place) for place in PLACES]
FILES = [f"{variable(*place)}_FILE" for place in sorted(SECRETS)]
NAME_CHARACTERS = string.ascii_letters + string.digits + "_"


@pytest.fixture(autouse=True)
def _apart() -> Iterator[None]:
    """What is secret here must not be masked in other tests' texts."""
    with redaction.apart():
        yield


# --- names -----------------------------------------------------------------------------------------------------------


@st.composite
def typos(draw: st.DrawFn) -> str:
    """A documented name with one character more, less or other."""
    name: str = draw(st.sampled_from([*NAMES, *FILES]))
    at, kept = draw(st.integers(0, len(name))), draw(st.integers(0, 1))
    middle = draw(st.sampled_from(["", *NAME_CHARACTERS]))
    typo: str = name[:at] + middle + name[at + 1 - kept :]
    return typo


@settings(max_examples=examples(1000))
@given(typos())
def test_a_name_with_one_character_changed_is_refused(typo: str) -> None:
    assume(typo not in NAMES and typo not in FILES)
    _assert_refused(typo)


@pytest.mark.parametrize("name", [*NAMES, *FILES])
def test_a_name_with_one_character_missing_is_refused(name: str) -> None:
    for at in range(len(name)):
        _assert_refused(name[:at] + name[at + 1 :])


def _assert_refused(typo: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load({typo: "1"})
    assert typo in str(refused.value)


def test_what_others_have_in_their_environment_is_none_of_ours() -> None:
    others = {"HOME": "/root", "XMARGIN_FOO": "1", "KAFKA__OPTIONS": "x", "MARGINAL": "y", "MARGIN": "z"}
    assert load(others) == Settings()


SERVICES = st.from_regex(r"[a-z]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)
PORT_NAMES = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,12}[a-z0-9])?", fullmatch=True)
ADDRESSES = st.sampled_from(["10.96.0.17", "fd00::1"])


@st.composite
def injected(draw: st.DrawFn) -> dict[str, str]:
    """What the kubelet sets for one Service (``enableServiceLinks``), as its source does."""
    name = draw(SERVICES.map(lambda rest: f"margin-{rest}") | st.just("margin") | SERVICES)
    prefix = name.upper().replace("-", "_")
    host = draw(ADDRESSES)
    ports = draw(st.dictionaries(st.integers(1, 65535), st.none() | PORT_NAMES, min_size=1, max_size=3))
    protocol = draw(st.sampled_from(["tcp", "udp", "sctp"]))
    first = next(iter(ports))
    authority = f"[{host}]" if ":" in host else host
    variables = {f"{prefix}_SERVICE_HOST": host, f"{prefix}_SERVICE_PORT": str(first)}
    variables[f"{prefix}_PORT"] = f"{protocol}://{authority}:{first}"
    for port, port_name in ports.items():
        if port_name is not None:
            variables[f"{prefix}_SERVICE_PORT_{port_name.upper().replace('-', '_')}"] = str(port)
        link = f"{prefix}_PORT_{port}_{protocol.upper()}"
        variables |= {link: f"{protocol}://{authority}:{port}", f"{link}_PROTO": protocol}
        variables |= {f"{link}_PORT": str(port), f"{link}_ADDR": host}
    return variables


@given(injected())
@example({"MARGIN_ROUTER_PORT": "tcp://10.0.0.1:9100", "MARGIN_ENGINE_PORT_9100_TCP_ADDR": "10.0.0.1"})
@example({"MARGIN_ORACLE__WEB_PORT": "tcp://10.0.0.1:80"})  # of a service named margin-oracle--web
def test_what_kubernetes_injects_is_no_setting(variables: dict[str, str]) -> None:
    assert read(variables) == read({})


def test_the_manifests_have_nothing_injected() -> None:
    import yaml

    documents = yaml.safe_load_all((ROOT / "infra/k8s/margin-clearing.yaml").read_text())
    pods = [document["spec"]["template"]["spec"] for document in documents if "template" in document.get("spec", {})]
    assert pods
    assert all(pod["enableServiceLinks"] is False for pod in pods)


# --- what set a value ------------------------------------------------------------------------------------------------


def test_each_value_knows_what_set_it(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the file\n")
    effective = read(
        {
            "MARGIN_REDIS__PASSWORD_FILE": str(secret),
            "MARGIN_ROUTER__LINGER_MS": "20",
            "MARGIN_KAFKA__OPTIONS": "session.timeout.ms=12000,client.rack=a",
            "MARGIN_TOPICS__SHARDS": "3",
        },
        {"topics.shards": 5, "service.log_level": None},
        {"topics.shards": "--shards", "service.log_level": "--log-level"},
    )
    assert effective.settings.redis.password == "of the file"
    assert effective.settings.kafka.session_timeout_ms == 12_000
    assert effective.settings.topics.shards == 5
    assert effective.set_by.keys() == set(PLACES)
    assert {place: name for place, name in effective.set_by.items() if name != "default"} == {
        ("redis", "password"): f"MARGIN_REDIS__PASSWORD_FILE ({secret})",
        ("router", "linger_ms"): "MARGIN_ROUTER__LINGER_MS",
        ("kafka", "options"): "MARGIN_KAFKA__OPTIONS",
        ("kafka", "session_timeout_ms"): "MARGIN_KAFKA__OPTIONS",
        ("topics", "shards"): "--shards",
    }


# --- secrets in files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("section", "field"), sorted(SECRETS))
def test_every_secret_may_come_from_a_file(section: str, field: str, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    text = "redis://u:of-the-file@h" if field == "url" else "of-the-file"
    path.write_text(f"{text}\n")
    with pytest.raises(SettingsError) as refused:  # most secrets need others beside them
        load({f"{variable(section, field)}_FILE": str(path), "MARGIN_TOPICS__SHARDS": "0"})
    assert "MARGIN_TOPICS__SHARDS" in str(refused.value)
    with pytest.raises(SettingsError, match="both give") as refused:
        load({f"{variable(section, field)}_FILE": str(path), variable(section, field): text})
    assert "of-the-file" not in str(refused.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, "No such file"),
        (b"", "empty"),
        (b"\n", "empty"),
        (b"Marker\nMarker\n", "more than one line"),
        (b"Mark\0er", "more than one line"),
        (b"\xff\xfeMarker", "UTF-8"),
        (b"Marker" * 20_000, "longer than"),
    ],
)
def test_a_file_that_is_no_secret_s_is_refused(data: bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(SettingsError, match=said) as refused:
        load({"MARGIN_REDIS__PASSWORD_FILE": str(path)})
    assert f"MARGIN_REDIS__PASSWORD_FILE={path}" in str(refused.value)
    assert "Mark" not in str(refused.value)


@given(st.text(st.characters(exclude_characters="\r\n\0", codec="utf-8"), min_size=1, max_size=50))
def test_a_file_s_secret_is_taken_as_it_stands(tmp_path_factory: pytest.TempPathFactory, secret: str) -> None:
    path = tmp_path_factory.mktemp("secret") / "file"
    for end in ("", "\n", "\r\n"):
        path.write_bytes((secret + end).encode())
        assert load({"MARGIN_REDIS__PASSWORD_FILE": str(path)}).redis.password == secret


def test_a_flag_takes_the_place_of_a_secret_s_file() -> None:
    environment = {"MARGIN_REDIS__URL_FILE": "/nowhere"}
    assert load(environment, {"redis.url": "redis://h"}).redis.url == "redis://h"
    assert load({"MARGIN_REDIS__URL_FILE": ""}).redis == RedisSettings()


# --- contradictions --------------------------------------------------------------------------------------------------

SCRAM = {
    "MARGIN_KAFKA__SECURITY_PROTOCOL": "SASL_PLAINTEXT",
    "MARGIN_KAFKA__SASL_MECHANISM": "SCRAM-SHA-256",
    "MARGIN_KAFKA__SASL_USERNAME": "u",
    "MARGIN_KAFKA__SASL_PASSWORD": "p",
}


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"MARGIN_KAFKA__SASL_PASSWORD": "p"}, "SASL_MECHANISM"),
        ({"MARGIN_KAFKA__SASL_USERNAME": "u"}, "SASL_MECHANISM"),
        ({**SCRAM, "MARGIN_KAFKA__SASL_PASSWORD": ""}, "SASL_PASSWORD"),
        ({**SCRAM, "MARGIN_KAFKA__SECURITY_PROTOCOL": "PLAINTEXT"}, "would not be used"),
        ({**SCRAM, "MARGIN_KAFKA__SSL_CA_LOCATION": "/etc/hosts"}, "SSL_CA_LOCATION would not be used"),
        ({"MARGIN_KAFKA__SSL_CA_LOCATION": "/etc/hosts"}, "SSL_CA_LOCATION would not be used"),
        ({"MARGIN_KAFKA__SSL_KEY_PASSWORD": "x"}, "SSL_KEY_PASSWORD would not be used"),
        ({"MARGIN_KAFKA__OPTIONS": "ssl.cipher.suites=ALL"}, "does without TLS"),
        ({"MARGIN_KAFKA__SECURITY_PROTOCOL": "SSL", "MARGIN_KAFKA__SSL_KEY_LOCATION": "/etc/hosts"}, "belong together"),
        ({"MARGIN_KAFKA__SECURITY_PROTOCOL": "SSL", "MARGIN_KAFKA__SSL_CA_LOCATION": "/nowhere"}, "no such file"),
        ({"MARGIN_KAFKA__SECURITY_PROTOCOL": "SSL", "MARGIN_KAFKA__SSL_CA_LOCATION": "/etc/hosts"}, "PEM"),
        ({"MARGIN_KAFKA__SECURITY_PROTOCOL": "SSL", "MARGIN_KAFKA__SSL_KEY_PASSWORD": "x"}, "SSL_KEY_LOCATION"),
        ({"MARGIN_REDIS__SSL_CA_LOCATION": "/etc/hosts"}, "without TLS"),
        ({"MARGIN_REDIS__URL": "unix:///s", "MARGIN_REDIS__SSL_KEY_PASSWORD": "x"}, "without TLS"),
        ({"MARGIN_REDIS__URL": "rediss://h", "MARGIN_REDIS__SSL_CERTIFICATE_LOCATION": "/etc/hosts"}, "together"),
        ({"MARGIN_REDIS__URL": "redis://u:p@h", "MARGIN_REDIS__PASSWORD": "q"}, "both give a password"),
        ({"MARGIN_REDIS__URL": "redis://u:p@h", "MARGIN_REDIS__USERNAME": "v"}, "both give a username"),
        ({"MARGIN_ORACLE__APP_ID": "margin-engine"}, "must differ"),
        ({"MARGIN_ORACLE__APP_ID": "x", "MARGIN_ROUTER__GROUP_ID": "x-leader"}, "must differ"),
        ({"MARGIN_ENGINE__GROUP_ID": ""}, "empty"),
        ({"MARGIN_ORACLE__HEARTBEAT_MS": "3000"}, "READY_AGE_MS"),
        ({"MARGIN_ORACLE__WEB_PORT": "9100", "MARGIN_SERVICE__METRICS_PORT": "9100"}, "9100"),
        ({"MARGIN_KAFKA__BOOTSTRAP_SERVERS": " , "}, "empty"),
        ({"MARGIN_KAFKA__BOOTSTRAP_SERVERS": "SASL_SSL://h:1"}, "host:port"),
        ({"MARGIN_KAFKA__BOOTSTRAP_SERVERS": "h:99999"}, "host:port"),
        ({"MARGIN_KAFKA__OPTIONS": "session.timeout.ms=1", "MARGIN_KAFKA__SESSION_TIMEOUT_MS": "9000"}, "different"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(environment: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said) as refused:
        load(environment)
    assert any(name.rpartition("__")[2] in str(refused.value) for name in environment)


def test_every_client_gets_the_same_addresses() -> None:
    kafka = load({"MARGIN_KAFKA__BOOTSTRAP_SERVERS": " a ,b:1,, [::1]:2"}).kafka
    assert kafka.servers == ("a:9092", "b:1", "[::1]:2")
    assert config.common(kafka, "x")["bootstrap.servers"] == "a:9092,b:1,[::1]:2"


# --- OPTIONS ---------------------------------------------------------------------------------------------------------


def test_each_property_has_one_meaning() -> None:
    kinds = [set(SETTINGS), TLS, set(SHARED), TUNING, PINNED]
    assert sum(map(len, kinds)) == len(set().union(*kinds))


@pytest.mark.parametrize(
    "made", [config.producer(KafkaSettings(), "x", "x"), config.consumer(KafkaSettings(), "x", "x"),
             config.reader(KafkaSettings(), "x")], ids=["producer", "consumer", "reader"]
)  # fmt: skip
def test_what_the_clients_pin_cannot_be_given(made: dict[str, Any]) -> None:
    """Otherwise it would be ignored, or a promise broken."""
    for name in made.keys() - config.common(KafkaSettings(), "x").keys() - SETTINGS.keys():
        with pytest.raises(SettingsError, match="not for choice"):
            load({"MARGIN_KAFKA__OPTIONS": f"{name}=1"})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("ssl.keystore.location=/x", "PEM"),
        ("ssl.key.pem=x", "SSL_KEY_LOCATION"),
        ("sasl.kerberos.principal=x", "aiokafka"),
        ("ssl.curves.list=x", "aiokafka"),
        ("socket.keepalive.enabled=true", "socket.keepalive.enable"),
        ("error_cb=x", "not a property"),
        ("acks=1", "not for choice"),
        ("isolation.level=read_uncommitted", "not for choice"),
        ("client.rack=a,client.rack=b", "twice"),
        ("ssl.ca.location=/a,ssl.ca.location=/b", "twice"),
        ("check.crcs=maybe", "check.crcs"),
        ("batch.size=-1", "batch.size"),
        ("enable.ssl.certificate.verification=perhaps", "true or false"),
        ("sasl.password=one,Marker", "entry 2"),
        ("sasl.password=one,Mark=er", "entry 2"),
    ],
)
def test_a_property_that_does_not_hold_for_all_is_refused(options: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as refused:
        load({"MARGIN_KAFKA__OPTIONS": options})
    assert "MARGIN_KAFKA__OPTIONS" in str(refused.value)
    assert "Mark" not in str(refused.value)


def test_a_property_that_is_a_setting_counts_as_that() -> None:
    by_options = {"MARGIN_KAFKA__OPTIONS": "security.protocol=sasl_plaintext,sasl.mechanisms=SCRAM-SHA-256,"
                  "sasl.username=u,sasl.password=p"}  # fmt: skip
    given, by_names = load(by_options).kafka, load(SCRAM).kafka
    one, other = (config.common(each, "x") | {"logger": None} for each in (given, by_names))
    assert one == other
    assert describe(load(by_options))["kafka"]["options"].endswith("sasl.password=***")


def test_a_shared_property_reaches_both_clients() -> None:
    sorted_properties = sort_properties("check.crcs=true,batch.size=9,client.rack=a,socket.timeout.ms=1500", "X")
    assert sorted_properties.librdkafka == {
        "check.crcs": "true",
        "batch.size": "9",
        "client.rack": "a",
        "socket.timeout.ms": "1500",
    }
    assert sorted_properties.faust == {
        "broker_check_crcs": True,
        "producer_max_batch_size": 9,
        "broker_request_timeout": 1.5,
        "producer_request_timeout": 1.5,
    }


# --- the URL of Redis ------------------------------------------------------------------------------------------------


@given(
    st.sampled_from(["redis", "rediss", "unix"]),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=20),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=6, max_size=20),
    st.integers(0, 15),
)
def test_a_url_gives_what_was_written_and_shows_no_secret(scheme: str, user: str, password: str, db: int) -> None:
    from urllib.parse import quote

    assume(not any(part in "redisshost:7/@?=***" for part in (user, password)))
    place = f"/run/redis.sock?db={db}" if scheme == "unix" else f"host:7/{db}"
    url = f"{scheme}://{quote(user, safe='')}:{quote(password, safe='')}@{place}"
    address = parse_url(url, "X")
    assert (address.username, address.password, address.db) == (user, password, db)
    shown = masked_url(url)
    assert shown == f"{scheme}://***@{place}"
    assert holds_password(url)
    properties = connection_properties(RedisSettings(url=url))
    assert (properties["username"], properties["password"]) == (user or None, password)


@pytest.mark.parametrize(
    "url",
    [
        "redis://u:Mark/er@h:x",
        "redis://u:Mark#er@h:99999",
        "redis://u:Marker@h:1:2",
        "redis://u:Marker@h/db",
        "redis://u:Marker@h?password=Marker",
        "redis://h?passwrd=Marker",
        "unix://u:Marker@relative.sock",
        "http://u:Marker@h",
        "u:Marker@h",
        "redis://h?ssl_cert_reqs=none",
        "rediss://h?ssl_cert_reqs=Marker",
        "rediss://h?ssl_ca_certs=Marker",
        "redis://h/1?db=2",
    ],
)
def test_a_url_that_is_none_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(SettingsError, match="MARGIN_REDIS__URL") as refused:
        load({"MARGIN_REDIS__URL": url})
    assert "Mark" not in str(refused.value)
    assert "Mark" not in masked_url(url) or "@" not in url


def test_settings_print_no_secret() -> None:
    loaded = load(SCRAM | {"MARGIN_KAFKA__SASL_PASSWORD": "Marker", "MARGIN_REDIS__URL": "redis://u:Marker@h"})
    for shown in (repr(loaded), str(loaded.kafka), json.dumps(describe(loaded)), repr([loaded.redis])):
        assert "Marker" not in shown
        assert "***" in shown
