"""What each librdkafka property in ``MARGIN_KAFKA__OPTIONS`` means, to which client.

Two clients reach Kafka: librdkafka in every role and tool, and aiokafka under the oracle's Faust app beside it. A
property is one of:

- the other name of a setting: taken as that setting, so it holds for both;
- shared: aiokafka has a counterpart (:data:`SHARED`), so it holds for both;
- tuning of librdkafka's own (:data:`TUNING`): it changes nothing that aiokafka would have to follow;
- anything else: refused with the reason. What would hold for one of the two only must not be given to either, and what
  the pipeline's promises rest on is not for choice.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from streams.errors import SettingsError

SETTINGS = {
    "bootstrap.servers": "bootstrap_servers",
    "metadata.broker.list": "bootstrap_servers",
    "security.protocol": "security_protocol",
    "sasl.mechanism": "sasl_mechanism",
    "sasl.mechanisms": "sasl_mechanism",
    "sasl.username": "sasl_username",
    "sasl.password": "sasl_password",
    "ssl.ca.location": "ssl_ca_location",
    "ssl.certificate.location": "ssl_certificate_location",
    "ssl.key.location": "ssl_key_location",
    "ssl.key.password": "ssl_key_password",
    "transaction.timeout.ms": "transaction_timeout_ms",
    "session.timeout.ms": "session_timeout_ms",
}
"""Properties that are settings: the field of ``KafkaSettings`` by the property's name."""

TLS = {
    "enable.ssl.certificate.verification",
    "ssl.endpoint.identification.algorithm",
    "ssl.cipher.suites",
    "ssl.crl.location",
}
"""Shared by way of the TLS context."""


def _whole(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


@dataclass(frozen=True, slots=True)
class FaustOption:
    """What a property is to Faust: the names of its settings, and the value as they take it."""

    names: tuple[str, ...]
    value: Callable[[str], object]


SHARED = {
    "socket.timeout.ms": FaustOption(
        ("broker_request_timeout", "producer_request_timeout"), lambda t: _whole(t) / 1000
    ),
    "metadata.max.age.ms": FaustOption(("consumer_metadata_max_age_ms", "producer_metadata_max_age_ms"), _whole),
    "connections.max.idle.ms": FaustOption(
        ("consumer_connections_max_idle_ms", "producer_connections_max_idle_ms"), _whole
    ),
    "max.partition.fetch.bytes": FaustOption(("consumer_max_fetch_size",), _whole),
    "fetch.message.max.bytes": FaustOption(("consumer_max_fetch_size",), _whole),
    "check.crcs": FaustOption(("broker_check_crcs",), _truth),
    "batch.size": FaustOption(("producer_max_batch_size",), _whole),
}
"""Properties that Faust has too."""

TUNING = {
    *("api.version.fallback.ms", "api.version.request", "api.version.request.timeout.ms", "batch.num.messages"),
    *("broker.address.family", "broker.address.ttl", "broker.version.fallback", "client.dns.lookup", "client.rack"),
    *("compression.level", "coordinator.query.interval.ms", "debug", "enable.metrics.push", "fetch.max.bytes"),
    *("fetch.min.bytes", "log.connection.close", "log.thread.name", "log_level", "message.copy.max.bytes"),
    *("message.send.max.retries", "metadata.recovery.rebootstrap.trigger.ms", "metadata.recovery.strategy"),
    *("queue.buffering.backpressure.threshold", "receive.message.max.bytes", "reconnect.backoff.max.ms"),
    *("reconnect.backoff.ms", "request.timeout.ms", "retries", "socket.connection.setup.timeout.ms"),
    *("socket.keepalive.enable", "socket.max.fails", "socket.nagle.disable", "socket.receive.buffer.bytes"),
    *("socket.send.buffer.bytes", "sticky.partitioning.linger.ms", "topic.metadata.propagation.max.ms"),
    *("topic.metadata.refresh.fast.interval.ms", "topic.metadata.refresh.sparse"),
}
"""Properties of librdkafka's clients alone."""

PINNED = {
    *("acks", "allow.auto.create.topics", "auto.commit.enable", "auto.commit.interval.ms", "auto.offset.reset"),
    *("client.id", "compression.codec", "compression.type", "delivery.report.only.error", "delivery.timeout.ms"),
    *("enable.auto.commit", "enable.auto.offset.store", "enable.gapless.guarantee", "enable.idempotence"),
    *("enable.partition.eof", "fetch.error.backoff.ms", "fetch.queue.backoff.ms", "fetch.wait.max.ms", "group.id"),
    *("group.instance.id", "group.protocol", "group.protocol.type", "group.remote.assignor", "heartbeat.interval.ms"),
    *("isolation.level", "linger.ms", "max.in.flight", "max.in.flight.requests.per.connection"),
    *("max.poll.interval.ms", "message.max.bytes", "message.timeout.ms", "partition.assignment.strategy"),
    *("partitioner", "queue.buffering.max.kbytes", "queue.buffering.max.messages", "queue.buffering.max.ms"),
    *("queued.max.messages.kbytes", "queued.min.messages", "request.required.acks", "retry.backoff.max.ms"),
    *("retry.backoff.ms", "statistics.interval.ms", "topic.metadata.refresh.interval.ms", "transactional.id"),
}
"""Properties whose value the pipeline's promises, or its figures, rest on."""

_FILES_ONLY = "the oracle's client reads certificates and keys from PEM files only: give {} a file in PEM form"
_NO_COUNTERPART = {
    "ssl.ca.pem": _FILES_ONLY.format("MARGIN_KAFKA__SSL_CA_LOCATION"),
    "ssl.certificate.pem": _FILES_ONLY.format("MARGIN_KAFKA__SSL_CERTIFICATE_LOCATION"),
    "ssl.key.pem": _FILES_ONLY.format("MARGIN_KAFKA__SSL_KEY_LOCATION"),
    "ssl.keystore.location": _FILES_ONLY.format(
        "MARGIN_KAFKA__SSL_CERTIFICATE_LOCATION and MARGIN_KAFKA__SSL_KEY_LOCATION"
    )
    + " (openssl pkcs12 -in STORE -out PEM)",
    "ssl.keystore.password": "there is no keystore; MARGIN_KAFKA__SSL_KEY_PASSWORD opens an encrypted PEM key",
}
_SECURITY = ("ssl.", "sasl.", "https.", "enable.ssl.", "enable.sasl.", "security.")


@dataclass(frozen=True, slots=True)
class KafkaProperties:
    """``OPTIONS`` sorted: ``settings`` by the field of ``KafkaSettings``, all others by the property's name."""

    settings: Mapping[str, str]
    tls: Mapping[str, str]
    shared: Mapping[str, str]
    tuning: Mapping[str, str]

    @property
    def librdkafka(self) -> dict[str, str]:
        """What librdkafka is given beside the settings."""
        return {**self.tls, **self.shared, **self.tuning}

    @property
    def faust(self) -> dict[str, object]:
        """What Faust is given beside the settings."""
        return {
            setting: option.value(value)
            for name, value in self.shared.items()
            for option in (SHARED[name],)
            for setting in option.names
        }

    @property
    def verify(self) -> bool:
        return self.tls.get("enable.ssl.certificate.verification", "true").lower() == "true"

    @property
    def check_hostname(self) -> bool:
        return self.tls.get("ssl.endpoint.identification.algorithm", "https").lower() == "https"


def sort_properties(options: str, name: str) -> KafkaProperties:
    """The properties of ``name=value,name=value``; ``name`` is the setting's, for what is said when one is refused.

    Raises:
        SettingsError: an entry is not ``name=value``, is there twice, or is refused. No value is ever told.
    """
    settings: dict[str, str] = {}
    sorted_in: dict[str, dict[str, str]] = {"tls": {}, "shared": {}, "tuning": {}}
    for number, entry in enumerate(filter(None, (part.strip() for part in options.split(","))), 1):
        property_name, separator, value = (part.strip() for part in entry.partition("="))
        if not separator or not property_name:
            raise SettingsError(
                f"{name}: entry {number} is not name=value (a value cannot hold a comma; secrets have settings of "
                "their own, which may hold anything)"
            )
        field = SETTINGS.get(property_name)
        kind = "tls" if property_name in TLS else "shared" if property_name in SHARED else "tuning"
        if field is not None:
            if settings.setdefault(field, value) != value:
                raise SettingsError(f"{name}: {property_name} is there twice, with different values")
            continue
        if kind == "tuning" and property_name not in TUNING:
            raise SettingsError(f"{name}: {_refusal(property_name, number)}")
        if sorted_in[kind].setdefault(property_name, value) != value:
            raise SettingsError(f"{name}: {property_name} is there twice, with different values")
    sorted_properties = KafkaProperties(settings, sorted_in["tls"], sorted_in["shared"], sorted_in["tuning"])
    _check_values(sorted_properties, name)
    return sorted_properties


def _refusal(name: str, number: int) -> str:
    if name in _NO_COUNTERPART:
        return f"{name}: {_NO_COUNTERPART[name]}"
    if name in PINNED:
        return f"{name} is not for choice: what the pipeline promises rests on the value that it gives"
    if name.startswith(_SECURITY):
        return f"{name} would hold for the clients of librdkafka only, not for the oracle's (aiokafka): not supported"
    known = sorted(SETTINGS.keys() | TLS | SHARED.keys() | TUNING)
    if alike := difflib.get_close_matches(name, known, 1):
        return f"{name} is not a property that may stand here; is it {alike[0]}?"
    # Not told by its name: it may be what stands behind a comma in a password.
    return f"entry {number} is not a property that may stand here; there are {', '.join(known)}"


def _check_values(properties: KafkaProperties, name: str) -> None:
    for shared, value in properties.shared.items():
        try:
            SHARED[shared].value(value)
        except ValueError:
            raise SettingsError(f"{name}: {shared} has a value that it may not have") from None
    sizes = {
        properties.shared[size]
        for size in ("max.partition.fetch.bytes", "fetch.message.max.bytes") & properties.shared.keys()
    }
    if len(sizes) > 1:
        raise SettingsError(f"{name}: max.partition.fetch.bytes and fetch.message.max.bytes are one property")
    verification = properties.tls.get("enable.ssl.certificate.verification", "true")
    if verification.lower() not in ("true", "false"):
        raise SettingsError(f"{name}: enable.ssl.certificate.verification must be true or false")
    identification = properties.tls.get("ssl.endpoint.identification.algorithm", "https")
    if identification.lower() not in ("https", "none"):
        raise SettingsError(f"{name}: ssl.endpoint.identification.algorithm must be https or none")
