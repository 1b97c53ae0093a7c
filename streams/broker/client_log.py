"""What librdkafka says of its connections and its errors, in words that a person can use.

:class:`ClientLog` is the logger of every client: its lines become events of our log and are remembered, so that whoever
gives up later can say why (:func:`last_reasons`). :func:`in_words` says a KafkaError: what is not authorised is never
called missing, and what has no answer has the client's own last reason.
"""

import logging
import re
import threading
import time
from collections.abc import Mapping

from confluent_kafka import KafkaError

from streams.logs import event
from streams.redaction import redacted

_REASON_AGE_S = 60.0
_REPEAT_S = 60.0
_REMEMBERED_MAX = 256
_REASON_CHARACTERS_MAX = 400
_BROKER = re.compile(
    r"^(?:[a-z_]+://)?(?P<broker>[^/\s]+:\d+)/(?P<node>bootstrap|-?\d+): (?P<reason>.*)$",
    re.DOTALL,
)
_THREAD = re.compile(r"^\[thrd:[^\]]*\]: ")
_NOISE = (
    re.compile(r" ?\((?:after )?\d+ms in state [A-Z_0-9]+(?:, \d+ identical error\(s\) suppressed)?\)"),
    re.compile(r",? ?\(?\d+ identical error\(s\) suppressed\)?"),
    re.compile(r"error:[0-9A-Fa-f]{6,}:"),
)
_NOT_AUTHORISED: Mapping[int, str] = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "not authorised for this topic",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "not authorised for this consumer group",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "not authorised for this operation on the cluster",
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "not authorised for this transactional id",
}
_NO_ANSWER = (KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE)

_lock = threading.Lock()
_said: dict[str, tuple[float, str]] = {}


class ClientLog:
    """What a confluent-kafka client takes as its ``logger``: its lines go to ``logger`` as events (None: nowhere).

    What a client says of a broker's connection is remembered for :func:`last_reasons`. While a client repeats itself
    its line is logged once a minute, at the level that librdkafka gave it.
    """

    def __init__(self, logger: logging.Logger | None) -> None:
        self._logger = logger
        self._logged: dict[tuple[str, str], float] = {}

    def log(self, level: int, _: str, facility: str, client: str, line: str) -> None:
        """One line of librdkafka, as confluent-kafka hands it over: ``"%s [%s] %s"`` and its three parts."""
        broker, reason = reason_of(_THREAD.sub("", line))
        now = time.monotonic()
        if broker and level >= logging.WARNING:
            with _lock:
                _said[broker] = (now, reason)
        if self._logger is None or now - self._logged.get((broker, reason), -_REPEAT_S) < _REPEAT_S:
            return
        if len(self._logged) >= _REMEMBERED_MAX:
            self._logged.clear()
        self._logged[broker, reason] = now
        event(self._logger, level, "kafka_client", client=client, facility=facility, broker=broker, reason=reason)


def reason_of(text: str) -> tuple[str, str]:
    """The broker (``host:port``, empty if none is named) and the reason in one of librdkafka's lines, without noise."""
    text = redacted(text)  # before it is cut: half a secret would not be known as one
    match = _BROKER.match(text.strip())
    broker, reason = (match["broker"], match["reason"]) if match else ("", text.strip())
    for noise in _NOISE:
        reason = noise.sub("", reason)
    if "Invalid response size" in reason:
        reason = "what listens there does not speak Kafka's protocol, or expects TLS"
    reason = re.sub(r"\s+", " ", reason).strip().rstrip(":;,. ")
    if len(reason) > _REASON_CHARACTERS_MAX:
        reason = reason[:_REASON_CHARACTERS_MAX] + "…"
    return broker, reason


def is_bootstrap(text: str) -> bool:
    """Whether a line of librdkafka is about an address of the settings, not about one that the cluster gave."""
    match = _BROKER.match(text.strip())
    return match is not None and match["node"] == "bootstrap"


def last_reasons(age_s_max: float = _REASON_AGE_S) -> str:
    """What this process's clients last said of the brokers that they could not keep a connection to; may be empty."""
    oldest = time.monotonic() - age_s_max
    with _lock:
        recent = {broker: reason for broker, (when, reason) in _said.items() if when >= oldest}
    return listed(recent)


def in_words(error: KafkaError) -> str:
    """A KafkaError as a person is told it: what is not authorised is said to be that, and connections have a reason."""
    if (operation := _NOT_AUTHORISED.get(error.code())) is not None:
        return f"{operation} ({error.name()}): grant it by an ACL"
    text = error.str()
    if error.code() in _NO_ANSWER:
        reasons = last_reasons()
        return f"{text}; {reasons}" if reasons else text
    return text


def is_not_authorised(error: KafkaError) -> bool:
    """Whether an ACL is in the way."""
    return error.code() in _NOT_AUTHORISED


def listed(reasons: Mapping[str, str], *, alone: bool = False) -> str:
    """Reasons by broker in one line; ``alone``: without the broker where there is one only."""
    if alone and len(reasons) == 1:
        return next(iter(reasons.values()))
    return ", ".join(f"{broker}: {reason}" if broker else reason for broker, reason in sorted(reasons.items()))
