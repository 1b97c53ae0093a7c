"""Settings of every role: defaults, then ``MARGIN_SECTION__FIELD`` in the environment, then flags.

Unknown names and malformed values are refused with the name and the reason, and so are settings that contradict each
other: a role that starts has settings that make sense together, and hold for every client in it. Secrets may come from
files (``…_FILE``) and are never printed (:func:`describe`); where each value came from is remembered (:func:`read`).
"""

import difflib
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from streams import redaction
from streams.access import redis_address, tls
from streams.access.kafka_properties import KafkaProperties, sort_properties
from streams.access.redis_address import RedisAddress, masked_url
from streams.access.tls import TlsFiles
from streams.errors import SettingsError

PREFIX = "MARGIN_"

UNIT = "x-unit"
"""Under which name the JSON Schema of the settings says what a number counts."""

Positive = Annotated[int, Meta(ge=1)]
Partitions = Annotated[int, Meta(ge=1, le=1024)]
Milliseconds = Annotated[int, Meta(ge=1, le=86_400_000, extra_json_schema={UNIT: "ms"})]
Kibibytes = Annotated[int, Meta(ge=1, le=1_000_000, extra_json_schema={UNIT: "KiB"})]
Port = Annotated[int, Meta(ge=0, le=65535)]

ABORT_CHECK_MS = 10_000
"""How often a broker looks for transactions that are over their time, unless it was told otherwise."""
MAX_POLL_INTERVAL_MS = 300_000
"""librdkafka's default: a consumer that does not poll for so long leaves its group."""


class _SettingsSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A section whose secrets are masked wherever it is printed."""

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({fields})"

    def __rich_repr__(self) -> Any:
        section = type(self).__name__.removesuffix("Settings").lower()
        for name in self.__struct_fields__:
            yield name, _shown(section, name, getattr(self, name))


class KafkaSettings(_SettingsSection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to reach Kafka.

    Which properties may stand in ``options``, and for which client each holds, is in
    :mod:`streams.access.kafka_properties`.
    """

    bootstrap_servers: Annotated[str, Meta(description="Kafka's addresses, `host:port,host:port`")] = "localhost:9092"
    security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"],
        Meta(description="how connections are secured: TLS, a user, both or neither"),
    ] = "PLAINTEXT"
    sasl_mechanism: Annotated[
        Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"],
        Meta(description="how the user is proved; the `SASL_` protocols need it"),
    ] = ""
    sasl_username: Annotated[str, Meta(description="the user, with a mechanism")] = ""
    sasl_password: Annotated[str, Meta(description="the user's password, with a mechanism")] = ""
    ssl_ca_location: Annotated[
        str,
        Meta(description="PEM file, or folder of hashed certificates, that is trusted; the system's without"),
    ] = ""
    ssl_certificate_location: Annotated[
        str, Meta(description="PEM file of this client's certificate, for mutual TLS; with its key")
    ] = ""
    ssl_key_location: Annotated[str, Meta(description="PEM file of the certificate's key")] = ""
    ssl_key_password: Annotated[str, Meta(description="the key's password, if it has one")] = ""
    options: Annotated[
        str, Meta(description="further librdkafka properties, `name=value,name=value`; which: see Security")
    ] = ""
    transaction_timeout_ms: Annotated[
        Milliseconds,
        Meta(description="after this a transaction is given up; longer than the brokers need to replace one of theirs"),
    ] = 16_000
    session_timeout_ms: Annotated[
        Milliseconds,
        Meta(
            description="after this a silent worker loses its partitions; longer than the brokers need to replace one "
            "of theirs"
        ),
    ] = 16_000

    @property
    def servers(self) -> tuple[str, ...]:
        """The addresses, each as ``host:port``; an IPv6 address is in brackets.

        Raises:
            SettingsError: one is not an address, or there is none.
        """
        return _servers(self.bootstrap_servers)

    @property
    def properties(self) -> KafkaProperties:
        """What ``options`` holds.

        Raises:
            SettingsError: a property is refused.
        """
        return sort_properties(self.options, f"{PREFIX}KAFKA__OPTIONS")

    @property
    def tls(self) -> TlsFiles | None:
        """What TLS is made of; None without TLS."""
        if not self.security_protocol.endswith("SSL"):
            return None
        properties = self.properties
        return TlsFiles(
            f"{PREFIX}KAFKA__",
            ca=self.ssl_ca_location,
            certificate=self.ssl_certificate_location,
            key=self.ssl_key_location,
            key_password=self.ssl_key_password,
            verify=properties.verify,
            check_hostname=properties.check_hostname,
            ciphers=properties.tls.get("ssl.cipher.suites", ""),
            crl=properties.tls.get("ssl.crl.location", ""),
        )

    @property
    def call_ms_max(self) -> int:
        """The longest that one call may wait for Kafka.

        A call of a transaction takes up to twice the transaction's timeout. What waits for the transaction of an owner
        that died waits for its timeout, and up to ``ABORT_CHECK_MS`` more until the broker looks.
        """
        return 2 * self.transaction_timeout_ms + ABORT_CHECK_MS

    @property
    def handover_s(self) -> float:
        """How long a process that must give partitions away may take over its last commit."""
        return min(self.transaction_timeout_ms, self.session_timeout_ms) / 2000


class RedisSettings(_SettingsSection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to reach Redis (or Valkey)."""

    url: Annotated[
        str,
        Meta(description="Redis or Valkey: `redis://host:port/db`, `rediss://` with TLS, or `unix:///path?db=0`"),
    ] = "redis://localhost:6379/0"
    username: Annotated[
        str, Meta(description="the user, if `user:password@` is not in the URL; a password alone is the default user's")
    ] = ""
    password: Annotated[str, Meta(description="the user's password")] = ""
    ssl_ca_location: Annotated[str, Meta(description="as for Kafka, with `rediss://`")] = ""
    ssl_certificate_location: Annotated[str, Meta(description="as for Kafka, with `rediss://`")] = ""
    ssl_key_location: Annotated[str, Meta(description="as for Kafka, with `rediss://`")] = ""
    ssl_key_password: Annotated[str, Meta(description="as for Kafka, with `rediss://`")] = ""
    timeout_ms: Annotated[Milliseconds, Meta(description="longest wait for one answer of Redis")] = 1_000

    @property
    def address(self) -> RedisAddress:
        """Where it is, with the credentials.

        Raises:
            SettingsError: the URL is none, or credentials are given twice.
        """
        parsed = redis_address.parse_url(self.url, f"{PREFIX}REDIS__URL")
        for field in ("username", "password"):
            if getattr(self, field) and getattr(parsed, field):
                raise SettingsError(f"{PREFIX}REDIS__URL and {PREFIX}REDIS__{field.upper()} both give a {field}")
        return redis_address.with_credentials(
            parsed, self.username or parsed.username, self.password or parsed.password
        )

    @property
    def tls(self) -> TlsFiles | None:
        """What TLS is made of; None without TLS."""
        address = self.address
        if address.scheme != "rediss":
            return None
        return TlsFiles(
            f"{PREFIX}REDIS__",
            ca=self.ssl_ca_location,
            certificate=self.ssl_certificate_location,
            key=self.ssl_key_location,
            key_password=self.ssl_key_password,
            verify=address.verify,
            check_hostname=address.check_hostname,
        )


class TopicsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``margin-clearing topics`` creates."""

    shards: Annotated[
        Partitions,
        Meta(description="shards of a new deployment, for `margin-clearing topics`; then `margin.layout.v1` says it"),
    ] = 4
    partitions: Annotated[
        Partitions, Meta(description="partitions of the other topics, for `margin-clearing topics`")
    ] = 4
    replication_factor: Annotated[
        int,
        Meta(
            ge=-1, le=9, description="replicas of each topic, for `margin-clearing topics`; -1 is the broker's default"
        ),
    ] = -1


class RouterSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The router."""

    group_id: Annotated[str, Meta(description="the routers' consumer group")] = "margin-router"
    batch_records_max: Annotated[int, Meta(ge=1, le=100_000, description="with so many records a batch ends")] = 20_000
    batch_kbytes_max: Annotated[Kibibytes, Meta(description="with so many bytes a batch ends")] = 16_384
    linger_ms: Annotated[
        Milliseconds,
        Meta(description="so long after the one before a batch ends; at most a quarter of Kafka's transaction timeout"),
    ] = 20
    commit_ms: Annotated[
        Milliseconds,
        Meta(description="so often a router commits how far it is; what came since is routed again after a crash"),
    ] = 1_000
    progress_ms: Annotated[
        Milliseconds,
        Meta(
            description="so often at most a router tells the engines how far it is; a tenth as often if it stands still"
        ),
    ] = 25
    ready_lag_records_max: Annotated[Positive, Meta(description="with more records to route a router is not ready")] = (
        100_000
    )


class OracleSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The oracle."""

    app_id: Annotated[
        str, Meta(description="Faust's application id, the oracles' consumer group; `-leader` is another")
    ] = "margin-oracle"
    heartbeat_ms: Annotated[
        Milliseconds,
        Meta(
            description="period of the full mark frames, the pipeline's clock; at most half of Kafka's session "
            "timeout, `READY_AGE_MS` and `WATCHDOG_MS`"
        ),
    ] = 250
    web_port: Annotated[Port, Meta(description="port of Faust's web server; 0 is none")] = 0

    @property
    def leader_group(self) -> str:
        """The group whose member with a partition publishes."""
        return f"{self.app_id}-leader"


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The engine."""

    group_id: Annotated[str, Meta(description="the engines' consumer group")] = "margin-engine"
    commit_interval_ms: Annotated[
        Milliseconds,
        Meta(
            description="longest time between commits, at most a quarter of Kafka's transaction timeout; "
            "a command is committed at once, an alert or a dead letter within 25 ms"
        ),
    ] = 200
    batch_frames_max: Annotated[int, Meta(ge=1, le=10_000, description="with so many frames a commit is due")] = 256
    batch_kbytes_max: Annotated[Kibibytes, Meta(description="with so many bytes a commit is due")] = 16_384
    journal_interval_ms: Annotated[
        Milliseconds, Meta(description="how often a quiet shard journals how far it has walked the marks")
    ] = 5_000
    redis_backlog_rows_max: Annotated[
        Positive, Meta(description="with more rows waiting for Redis they are read again from the changelog instead")
    ] = 1_000_000
    ready_lag_frames_max: Annotated[
        Positive, Meta(description="with a shard further behind an engine is not ready")
    ] = 1_000


class ServiceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every process has."""

    instance_id: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9._\-]{0,200}$",
            description="a name that survives restarts: static group membership; without, host name and process id",
        ),
    ] = ""
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], Meta(description="the least that is logged")] = (
        "INFO"
    )
    log_format: Annotated[Literal["json", "text"], Meta(description="how log lines are written")] = "json"
    metrics_port: Annotated[
        Port, Meta(description="port that serves `/metrics`, `/livez` and `/readyz`; 0 serves nothing")
    ] = 0
    watchdog_ms: Annotated[
        Milliseconds,
        Meta(
            description="a loop or shard without progress for so long ends the process (exit code 70); at least 1.25 "
            "times the longest wait for Kafka or Redis, at most 300,000"
        ),
    ] = 60_000
    ready_age_ms: Annotated[
        Milliseconds,
        Meta(description="without a mark frame (the oracle: a heartbeat) for so long a process is not ready"),
    ] = 5_000
    stands_ms: Annotated[
        Milliseconds,
        Meta(
            description="a partition of which there is more to read, and at which nothing moves for so long, is a fault"
        ),
    ] = 15_000


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings, one section a part."""

    kafka: KafkaSettings = KafkaSettings()
    redis: RedisSettings = RedisSettings()
    topics: TopicsSettings = TopicsSettings()
    router: RouterSettings = RouterSettings()
    oracle: OracleSettings = OracleSettings()
    engine: EngineSettings = EngineSettings()
    service: ServiceSettings = ServiceSettings()

    @property
    def worker_name(self) -> str:
        """The name of this process in logs, transactional ids and the journal."""
        return self.service.instance_id or f"{socket.gethostname()}-{os.getpid()}"

    @property
    def outside_group_s_max(self) -> float:
        """Seconds a consumer may be outside its group: a member that stands still is ended and expelled before."""
        return (self.service.watchdog_ms + 2 * self.kafka.session_timeout_ms) / 1000


SECRETS = {
    ("kafka", "sasl_password"),
    ("kafka", "ssl_key_password"),
    ("redis", "url"),
    ("redis", "password"),
    ("redis", "ssl_key_password"),
}
"""What is, or may hold, a secret: never shown, and taken from a file where ``…_FILE`` names one."""

DEFAULT = "default"
_FILE_SUFFIX = "_file"
_SECRET_BYTES_MAX = 65_536
_INJECTED = re.compile(r"(_SERVICE_HOST|_SERVICE_PORT(_[A-Z0-9_]+)?|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$")
_INJECTED_ADDRESS = re.compile(r"(tcp|udp|sctp)://")


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and what set each: ``default``, a variable, a variable and the file that it names, or a flag."""

    settings: Settings
    set_by: Mapping[tuple[str, str], str]
    """By (section, field)."""


def load(environment: Mapping[str, str] | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Settings from ``environment`` (the process's by default) and ``overrides`` (``{"kafka.bootstrap_servers": …}``).

    Raises:
        SettingsError: an unknown name, a malformed value, a file that cannot be read, or values that contradict each
            other.
    """
    return read(environment, overrides).settings


def read(
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    flags: Mapping[str, str] | None = None,
) -> Loaded:
    """As :func:`load`, with what set each value. ``flags`` gives the flag's name by the override's.

    Raises:
        SettingsError: as :func:`load`.
    """
    values: dict[str, dict[str, Any]] = {}
    set_by: dict[tuple[str, str], str] = {}
    overridden = {path for path, value in (overrides or {}).items() if value is not None}
    _apply_environment(os.environ if environment is None else environment, overridden, values, set_by)
    for path in sorted(overridden):
        section, _, field = path.partition(".")
        values.setdefault(section, {})[field] = (overrides or {})[path]
        set_by[section, field] = (flags or {}).get(path, "override")
    _hide_secrets(values)
    _refuse_unknown(values)
    _apply_properties(values, set_by)
    try:
        settings = msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(_in_words(str(error))) from None
    _check(settings)
    return Loaded(settings, {place: set_by.get(place, DEFAULT) for place in places()})


def describe(settings: Settings) -> dict[str, Any]:
    """The settings as plain values with every secret masked, for logs and for ``margin-clearing settings``."""
    plain: dict[str, dict[str, Any]] = msgspec.to_builtins(settings)
    return {
        section: {field: _shown(section, field, value) for field, value in fields.items()}
        for section, fields in plain.items()
    }


def variable(section: str, field: str) -> str:
    """The name of a setting in the environment."""
    return f"{PREFIX}{section.upper()}__{field.upper()}"


def schema(section: str, field: str) -> dict[str, Any]:
    """The JSON Schema of a setting: type, default and limits, ``description`` in Markdown, and :data:`UNIT`."""
    fields: dict[str, Any] = msgspec.json.schema(type(getattr(Settings(), section)))
    return next(iter(fields["$defs"].values()))["properties"][field]  # type: ignore[no-any-return]


def is_injected(name: str, value: str) -> bool:
    """Whether a variable is one that Kubernetes sets for a Service (the form of Docker's links), not a setting.

    ``…_PORT`` alone tells nothing: a setting's name may end so. An address behind it does.
    """
    if _INJECTED.search(name):
        return True
    return name.endswith("_PORT") and _INJECTED_ADDRESS.match(value) is not None


def places() -> list[tuple[str, str]]:
    """(section, field) of every setting, in their order."""
    return [
        (section, field)
        for section in Settings.__struct_fields__
        for field in getattr(Settings(), section).__struct_fields__
    ]


def _variables() -> list[str]:
    names = [variable(*place) for place in places()]
    return [*names, *(f"{variable(*place)}{_FILE_SUFFIX.upper()}" for place in sorted(SECRETS))]


def _differ_by_one(one: str, other: str) -> bool:
    """Whether one character must be put in, left out or replaced to make one name of the other."""
    if abs(len(one) - len(other)) > 1:
        return False
    same = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    first, second = one[same:], other[same:]
    return first[1:] == second[1:] or first[1:] == second or first == second[1:]


def _shown(section: str, field: str, value: Any) -> Any:
    if not value:
        return value
    if (section, field) == ("redis", "url"):
        return masked_url(value)
    if (section, field) in SECRETS:
        return redaction.MASK
    if (section, field) == ("kafka", "options"):
        masked = re.sub(r"((?:password|secret|key|pem|token)[^=,]*)=[^,]*", r"\1=***", value, flags=re.IGNORECASE)
        return redaction.redacted(masked)
    return value


def _apply_environment(
    environment: Mapping[str, str],
    overridden: set[str],
    values: dict[str, dict[str, Any]],
    set_by: dict[tuple[str, str], str],
) -> None:
    files: dict[tuple[str, str], str] = {}
    for name in sorted(environment):
        if not name.startswith(PREFIX):
            if meant := next((known for known in _variables() if _differ_by_one(name, known)), None):
                raise SettingsError(f"{name}: is {meant} meant?")
            continue
        if is_injected(name, environment[name]):
            continue
        section, separator, field = name[len(PREFIX) :].lower().partition("__")
        if not separator or name != name.upper():
            raise SettingsError(f"{name}: not a setting; settings are named {PREFIX}SECTION__FIELD, in capitals")
        stem = field.removesuffix(_FILE_SUFFIX)
        if stem != field and (section, stem) in SECRETS:
            if environment[name]:
                files[section, stem] = name
            continue
        values.setdefault(section, {})[field] = environment[name]
        set_by[section, field] = name
    for (section, field), name in files.items():
        if f"{section}.{field}" in overridden:
            continue
        if values.get(section, {}).get(field):
            raise SettingsError(f"{name} and {set_by[section, field]} both give the same secret: give one of them")
        values.setdefault(section, {})[field] = _secret_of_file(name, environment[name])
        set_by[section, field] = f"{name} ({environment[name]})"


def _secret_of_file(name: str, path: str) -> str:
    """The text of a file without the line's end behind it. What is wrong is told without what is in it."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(_SECRET_BYTES_MAX + 1)
    except OSError as error:
        raise SettingsError(f"{name}={path}: {error.strerror or 'cannot be read'}") from None
    if len(data) > _SECRET_BYTES_MAX:
        raise SettingsError(f"{name}={path}: longer than {_SECRET_BYTES_MAX:,} bytes, so not a secret's file")
    try:
        text = data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise SettingsError(f"{name}={path}: not text in UTF-8") from None
    if not text:
        raise SettingsError(f"{name}={path}: the file is empty")
    if "\n" in text or "\0" in text:
        raise SettingsError(f"{name}={path}: more than one line: the file must hold the secret and nothing else")
    return text


def _hide_secrets(values: Mapping[str, Mapping[str, Any]]) -> None:
    for section, field in SECRETS:
        value = values.get(section, {}).get(field)
        if isinstance(value, str) and (section, field) != ("redis", "url"):
            redaction.hide(value)
    url = values.get("redis", {}).get("url")
    if isinstance(url, str):
        for secret in redis_address.secrets_of(url):
            redaction.hide(secret)
    options = values.get("kafka", {}).get("options")
    if isinstance(options, str):
        for secret in re.findall(r"(?:password|secret|pem|token)[^=,]*=([^,]*)", options, flags=re.IGNORECASE):
            redaction.hide(secret.strip())


def _apply_properties(values: dict[str, dict[str, Any]], set_by: dict[tuple[str, str], str]) -> None:
    """A property in OPTIONS that is a setting's other name counts as that setting."""
    kafka = values.get("kafka", {})
    options = kafka.get("options")
    if not isinstance(options, str):
        return
    name = variable("kafka", "options")
    for field, value in sort_properties(options, name).settings.items():
        value = value.upper() if field in ("security_protocol", "sasl_mechanism") else value
        if str(kafka.get(field) or value) != value:
            raise SettingsError(f"{name} and {set_by['kafka', field]} give different values for the same setting")
        kafka[field] = value
        set_by.setdefault(("kafka", field), set_by["kafka", "options"])


def _told(entry: str) -> str:
    """An address as it may be told: what has more in it than one has may hold a secret."""
    return repr(entry) if re.fullmatch(r"[A-Za-z0-9_.:\[\]\-]+", entry) else "one of its entries"


def _servers(text: str) -> tuple[str, ...]:
    name = variable("kafka", "bootstrap_servers")
    servers = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9_.\-]+)(?::(\d{1,5}))?", entry)
        if match is None or not 0 < int(match[2] or 9092) < 65_536:
            raise SettingsError(
                f"{name}: {_told(entry)} is not host:port (an IPv6 address is written [::1]:9092; how the connection "
                "is secured is said by SECURITY_PROTOCOL)"
            )
        servers.append(f"{match[1]}:{match[2] or 9092}")
    if not servers:
        raise SettingsError(f"{name} is empty")
    return tuple(servers)


def _refuse_unknown(values: Mapping[str, Mapping[str, Any]]) -> None:
    known_places = places()
    for section, fields in values.items():
        for field in fields:
            if (section, field) in known_places:
                continue
            name = variable(section, field)
            alike = difflib.get_close_matches(name, _variables(), 1)
            meant = f"is {alike[0]} meant? " if alike else ""
            known = [each for of, each in known_places if of == section]
            if not known:
                raise SettingsError(
                    f"{name}: no such section; {meant}there are {', '.join(Settings.__struct_fields__)}"
                )
            raise SettingsError(f"{name}: no such setting; {meant}{section} has {', '.join(known)}")


def _in_words(error: str) -> str:
    match = re.search(r"^(.*) - at `\$\.(\w+)\.(\w+)`$", error)
    if not match:
        return error
    reason, section, field = match.groups()
    return f"{PREFIX}{section.upper()}__{field.upper()}: {reason}"


def _check(settings: Settings) -> None:
    kafka, engine = settings.kafka, settings.engine
    _check_kafka(kafka)
    _check_redis(settings.redis)
    if engine.commit_interval_ms * 4 > kafka.transaction_timeout_ms:
        raise SettingsError(
            f"{PREFIX}ENGINE__COMMIT_INTERVAL_MS={engine.commit_interval_ms} leaves no room within "
            f"KAFKA__TRANSACTION_TIMEOUT_MS={kafka.transaction_timeout_ms}: at most a quarter of it"
        )
    if settings.router.linger_ms * 4 > kafka.transaction_timeout_ms:
        raise SettingsError(
            f"{PREFIX}ROUTER__LINGER_MS={settings.router.linger_ms} leaves no room within "
            f"KAFKA__TRANSACTION_TIMEOUT_MS={kafka.transaction_timeout_ms}: at most a quarter of it"
        )
    _check_watchdog(settings)
    _check_groups(settings)
    _check_oracle(settings)


def _check_kafka(kafka: KafkaSettings) -> None:
    protocol = f"{PREFIX}KAFKA__SECURITY_PROTOCOL={kafka.security_protocol}"
    _ = kafka.servers
    if kafka.security_protocol.startswith("SASL") and not kafka.sasl_mechanism:
        raise SettingsError(f"{protocol} needs a SASL_MECHANISM")
    if kafka.sasl_mechanism and not kafka.security_protocol.startswith("SASL"):
        raise SettingsError(
            f"{PREFIX}KAFKA__SASL_MECHANISM={kafka.sasl_mechanism} contradicts "
            f"SECURITY_PROTOCOL={kafka.security_protocol}: the credentials would not be used"
        )
    if kafka.sasl_mechanism and not (kafka.sasl_username and kafka.sasl_password):
        raise SettingsError(f"{PREFIX}KAFKA__SASL_MECHANISM needs SASL_USERNAME and SASL_PASSWORD")
    if not kafka.sasl_mechanism and (kafka.sasl_username or kafka.sasl_password):
        raise SettingsError(f"{PREFIX}KAFKA__SASL_USERNAME and SASL_PASSWORD would not be used without SASL_MECHANISM")
    if kafka.tls is None:
        _refuse_tls(kafka, f"{PREFIX}KAFKA__", f"{protocol} does without TLS")
        if unused := sorted(kafka.properties.tls):
            raise SettingsError(f"{PREFIX}KAFKA__OPTIONS: {unused[0]}, but {protocol} does without TLS")
    else:
        _check_tls(kafka, kafka.tls)


def _check_redis(redis: RedisSettings) -> None:
    address = redis.address
    if redis.tls is None:
        _refuse_tls(redis, f"{PREFIX}REDIS__", f"{PREFIX}REDIS__URL begins with {address.scheme}://, so without TLS")
    else:
        _check_tls(redis, redis.tls)


def _refuse_tls(section: KafkaSettings | RedisSettings, prefix: str, reason: str) -> None:
    for field in ("ssl_ca_location", "ssl_certificate_location", "ssl_key_location", "ssl_key_password"):
        if getattr(section, field):
            raise SettingsError(f"{prefix}{field.upper()} would not be used: {reason}")


def _check_tls(section: KafkaSettings | RedisSettings, files: TlsFiles) -> None:
    if bool(section.ssl_certificate_location) != bool(section.ssl_key_location):
        raise SettingsError(f"{files.name}SSL_CERTIFICATE_LOCATION and SSL_KEY_LOCATION belong together: give both")
    if section.ssl_key_password and not section.ssl_key_location:
        raise SettingsError(f"{files.name}SSL_KEY_PASSWORD needs SSL_KEY_LOCATION")
    tls.context(files)


def _check_groups(settings: Settings) -> None:
    """No two kinds of members may meet in one group: they would share out each other's partitions."""
    app = settings.oracle.app_id
    groups = {
        "ROUTER__GROUP_ID": settings.router.group_id,
        "ENGINE__GROUP_ID": settings.engine.group_id,
        "ORACLE__APP_ID": app,
        "ORACLE__APP_ID's group of leaders": settings.oracle.leader_group,
    }
    seen: dict[str, str] = {}
    for name, group in groups.items():
        if not group.strip():
            raise SettingsError(f"{PREFIX}{name} is empty")
        if group in seen:
            raise SettingsError(f"{seen[group]} and {name} are both {group!r}: they must differ")
        seen[group] = name


def _check_oracle(settings: Settings) -> None:
    heartbeat_ms, service = settings.oracle.heartbeat_ms, settings.service
    for name, limit_ms in (
        ("SERVICE__READY_AGE_MS", service.ready_age_ms),
        ("SERVICE__WATCHDOG_MS", service.watchdog_ms),
        ("KAFKA__SESSION_TIMEOUT_MS", settings.kafka.session_timeout_ms),
    ):
        if heartbeat_ms * 2 > limit_ms:
            raise SettingsError(
                f"{PREFIX}ORACLE__HEARTBEAT_MS={heartbeat_ms} is too rare for {name}={limit_ms}: at most half of it"
            )
    if settings.oracle.web_port and settings.oracle.web_port == service.metrics_port:
        raise SettingsError(f"ORACLE__WEB_PORT and SERVICE__METRICS_PORT are both {service.metrics_port}")


def _check_watchdog(settings: Settings) -> None:
    kafka, limit_ms = settings.kafka, settings.service.watchdog_ms
    wait_ms = max(kafka.call_ms_max, 2 * kafka.session_timeout_ms, 2 * settings.redis.timeout_ms)
    at_least_ms = wait_ms + wait_ms // 4
    if limit_ms < at_least_ms:
        raise SettingsError(
            f"{PREFIX}SERVICE__WATCHDOG_MS={limit_ms} would end a process that only waits: with "
            f"KAFKA__TRANSACTION_TIMEOUT_MS={kafka.transaction_timeout_ms}, "
            f"KAFKA__SESSION_TIMEOUT_MS={kafka.session_timeout_ms} and REDIS__TIMEOUT_MS={settings.redis.timeout_ms} "
            f"a commit, or the wait for the transaction or the session of a process that died, may take {wait_ms} ms; "
            f"give it at least {at_least_ms}"
        )
    if limit_ms > MAX_POLL_INTERVAL_MS:
        raise SettingsError(
            f"{PREFIX}SERVICE__WATCHDOG_MS={limit_ms} is too late: after {MAX_POLL_INTERVAL_MS} ms without a poll the "
            "group gives the process's partitions away anyhow; at most that"
        )
