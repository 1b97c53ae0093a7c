"""Settings of every role: defaults, then ``MARGIN_SECTION__FIELD`` in the environment, then flags.

Unknown names and malformed values are refused with the name and the reason, and so are settings that contradict each
other: a role that starts has settings that make sense together. Secrets are never printed (:func:`describe`).
"""

import os
import re
import socket
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from streams.errors import SettingsError

PREFIX = "MARGIN_"

Positive = Annotated[int, Meta(ge=1)]
Milliseconds = Annotated[int, Meta(ge=1, le=86_400_000)]
Port = Annotated[int, Meta(ge=0, le=65535)]

ABORT_CHECK_MS = 10_000
"""How often a broker looks for transactions that are over their time, unless it was told otherwise."""
MAX_POLL_INTERVAL_MS = 300_000
"""librdkafka's default: a consumer that does not poll for so long leaves its group."""


class KafkaSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to reach Kafka. ``options`` holds further librdkafka properties as ``name=value,name=value``."""

    bootstrap_servers: str = "localhost:9092"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = ""
    sasl_username: str = ""
    sasl_password: str = ""
    ssl_ca_location: str = ""
    options: str = ""
    transaction_timeout_ms: Milliseconds = 10_000
    session_timeout_ms: Milliseconds = 10_000

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


class RedisSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to reach Redis (or Valkey)."""

    url: str = "redis://localhost:6379/0"
    timeout_ms: Milliseconds = 1_000


class TopicsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``margin-clearing topics`` creates. ``shards`` is the partition count of ``margin.events.v1``."""

    shards: Annotated[int, Meta(ge=1, le=1024)] = 4
    partitions: Annotated[int, Meta(ge=1, le=1024)] = 4
    replication_factor: Annotated[int, Meta(ge=-1, le=9)] = -1


class RouterSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The router. A batch ends at ``batch_records_max`` records, ``batch_kbytes_max`` or ``linger_ms`` after its first.

    With more than ``ready_lag_records_max`` records to route it is not ready.
    """

    group_id: str = "margin-router"
    batch_records_max: Annotated[int, Meta(ge=1, le=100_000)] = 20_000
    batch_kbytes_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 16_384
    linger_ms: Milliseconds = 20
    ready_lag_records_max: Positive = 100_000


class OracleSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The oracle. ``heartbeat_ms`` is the period of the full mark frames, the pipeline's clock."""

    app_id: str = "margin-oracle"
    heartbeat_ms: Milliseconds = 250
    web_port: Port = 0


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The engine. Commands are committed at once, everything else at the latest ``commit_interval_ms`` later."""

    group_id: str = "margin-engine"
    commit_interval_ms: Milliseconds = 50
    batch_frames_max: Annotated[int, Meta(ge=1, le=10_000)] = 256
    batch_kbytes_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 16_384
    journal_interval_ms: Milliseconds = 5_000
    redis_backlog_rows_max: Positive = 1_000_000
    ready_lag_frames_max: Positive = 1_000


class ServiceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every process has. An empty ``instance_id`` becomes host name and process id (dynamic membership).

    ``metrics_port`` serves ``/metrics``, ``/livez`` and ``/readyz``; 0 serves nothing. A loop without progress for
    ``watchdog_ms`` ends the process; without a mark frame (the oracle: a beat) for ``ready_age_ms`` it is not ready.
    """

    instance_id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._\-]{0,200}$")] = ""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["json", "text"] = "json"
    metrics_port: Port = 0
    watchdog_ms: Milliseconds = 60_000
    ready_age_ms: Milliseconds = 5_000


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


SECRETS = {("kafka", "sasl_password")}


def load(environment: Mapping[str, str] | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Settings from ``environment`` (the process's by default) and ``overrides`` (``{"kafka.bootstrap_servers": …}``).

    Raises:
        SettingsError: an unknown name, a malformed value, or values that contradict each other.
    """
    values: dict[str, dict[str, Any]] = {}
    for name, value in (os.environ if environment is None else environment).items():
        if name.startswith(PREFIX):
            section, separator, field = name[len(PREFIX) :].lower().partition("__")
            if not separator:
                raise SettingsError(f"{name}: not a setting; settings are named {PREFIX}SECTION__FIELD")
            values.setdefault(section, {})[field] = value
    for path, value in (overrides or {}).items():
        if value is not None:
            section, _, field = path.partition(".")
            values.setdefault(section, {})[field] = value
    _refuse_unknown(values)
    try:
        settings = msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(_in_words(str(error))) from None
    _check(settings)
    return settings


def describe(settings: Settings) -> dict[str, Any]:
    """The settings as plain values with every secret masked, for logs and for ``margin-clearing settings``."""
    plain: dict[str, dict[str, Any]] = msgspec.to_builtins(settings)
    for section, field in SECRETS:
        if plain[section][field]:
            plain[section][field] = "***"
    plain["redis"]["url"] = re.sub(r"//[^@/]*@", "//***@", plain["redis"]["url"])
    if plain["kafka"]["options"]:
        plain["kafka"]["options"] = re.sub(
            r"((?:password|secret|key)[^=,]*)=[^,]*", r"\1=***", plain["kafka"]["options"], flags=re.IGNORECASE
        )
    return plain


def kafka_options(settings: KafkaSettings) -> dict[str, str]:
    """The extra librdkafka properties of ``options``.

    Raises:
        SettingsError: an entry is not ``name=value``.
    """
    options: dict[str, str] = {}
    for entry in filter(None, (part.strip() for part in settings.options.split(","))):
        name, separator, value = entry.partition("=")
        if not separator:
            raise SettingsError(f"{PREFIX}KAFKA__OPTIONS: {entry!r} is not name=value")
        options[name.strip()] = value.strip()
    return options


def _refuse_unknown(values: Mapping[str, Mapping[str, Any]]) -> None:
    for section, fields in values.items():
        if section not in Settings.__struct_fields__:
            known = ", ".join(Settings.__struct_fields__)
            raise SettingsError(f"{PREFIX}{section.upper()}__…: no such section; there are {known}")
        known_fields = getattr(Settings(), section).__struct_fields__
        for field in fields:
            if field not in known_fields:
                raise SettingsError(
                    f"{PREFIX}{section.upper()}__{field.upper()}: no such setting; "
                    f"{section} has {', '.join(known_fields)}"
                )


def _in_words(error: str) -> str:
    match = re.search(r"^(.*) - at `\$\.(\w+)\.(\w+)`$", error)
    if not match:
        return error
    reason, section, field = match.groups()
    return f"{PREFIX}{section.upper()}__{field.upper()}: {reason}"


def _check(settings: Settings) -> None:
    kafka, engine = settings.kafka, settings.engine
    if not kafka.bootstrap_servers.strip():
        raise SettingsError(f"{PREFIX}KAFKA__BOOTSTRAP_SERVERS is empty")
    if kafka.security_protocol.startswith("SASL") and not kafka.sasl_mechanism:
        raise SettingsError(f"{PREFIX}KAFKA__SECURITY_PROTOCOL={kafka.security_protocol} needs a SASL_MECHANISM")
    if kafka.sasl_mechanism and not kafka.security_protocol.startswith("SASL"):
        raise SettingsError(
            f"{PREFIX}KAFKA__SASL_MECHANISM={kafka.sasl_mechanism} contradicts "
            f"SECURITY_PROTOCOL={kafka.security_protocol}: the credentials would not be used"
        )
    if kafka.sasl_mechanism and not (kafka.sasl_username and kafka.sasl_password):
        raise SettingsError(f"{PREFIX}KAFKA__SASL_MECHANISM needs SASL_USERNAME and SASL_PASSWORD")
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
    if settings.router.group_id == engine.group_id:
        raise SettingsError(f"ROUTER__GROUP_ID and ENGINE__GROUP_ID are both {engine.group_id!r}: they must differ")
    if not re.match(r"^(redis|rediss|unix)://", settings.redis.url):
        raise SettingsError(f"{PREFIX}REDIS__URL must begin with redis://, rediss:// or unix://")
    kafka_options(kafka)


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
