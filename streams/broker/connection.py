"""Whether Kafka can be reached: known within seconds, and told with the address and the client's own last reason."""

import time
from collections.abc import Mapping

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from streams.broker import config
from streams.broker.client_log import ClientLog, in_words, is_bootstrap, listed, reason_of
from streams.errors import BrokerError
from streams.settings import KafkaSettings

ANSWER_S_MAX = 3.0
"""How long a cluster may take to answer for the first time. With the start of Python a refusal comes within 5 s."""

_POLL_S = 0.05
_NO_REASON = "no reason given; its name may not resolve, or what is there accepts and says nothing"
_CHECK = "set MARGIN_KAFKA__BOOTSTRAP_SERVERS or --bootstrap-servers to where it is"
_ADVICE: Mapping[int, str] = {
    KafkaError._AUTHENTICATION: (
        "check MARGIN_KAFKA__SASL_MECHANISM, MARGIN_KAFKA__SASL_USERNAME and MARGIN_KAFKA__SASL_PASSWORD"
    ),
    KafkaError._SSL: "check MARGIN_KAFKA__SECURITY_PROTOCOL, MARGIN_KAFKA__SSL_CA_LOCATION and the address's host name",
    KafkaError._RESOLVE: f"no such host: {_CHECK}",
}
_FOR_GOOD = (KafkaError._AUTHENTICATION, KafkaError._SSL)
"""What waiting does not mend."""


def require_kafka(kafka: KafkaSettings, timeout_s: float = ANSWER_S_MAX) -> None:
    """Return when a broker has answered, and can be reached at the address that the cluster gives for it.

    Signals are served while this waits.

    Raises:
        BrokerError: none has in ``timeout_s``, or it refuses for a reason that waiting does not mend. The text has the
            address and the client's own last reason.
        SettingsError: librdkafka refuses the settings.
    """
    _Check(kafka, timeout_s).run()


class _Check:
    """One look at a cluster. Not to be used twice."""

    def __init__(self, kafka: KafkaSettings, timeout_s: float) -> None:
        self._kafka = kafka
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._reasons: dict[str, str] = {}
        self._given: dict[str, str] = {}
        """Those of brokers that the cluster has named, and not the settings."""
        self._codes: dict[str, int] = {}
        self._refused: int | None = None
        properties = config.common(kafka, "margin-check") | {
            "error_cb": self._on_error,
            "logger": ClientLog(None),
            # Where a listener accepts and says nothing, this is what gives the reason.
            "socket.connection.setup.timeout.ms": max(1000, int(1000 * timeout_s) - 1200),
        }
        self._admin = config.created(AdminClient, properties)

    def run(self) -> None:
        # The answer is the controller's, at the address that the cluster gives for it, not only a bootstrap server's.
        described = self._admin.describe_cluster(request_timeout=self._timeout_s + 1)
        while not described.done() and self._refused is None and time.monotonic() < self._deadline:
            self._admin.poll(_POLL_S)  # serves error_cb and the log, and lets signals in
        if described.done():
            try:
                described.result()
                return
            except KafkaException as error:
                self._note(error.args[0])
        raise BrokerError(self._why())

    def _on_error(self, error: KafkaError) -> None:
        self._note(error)
        if error.code() in _FOR_GOOD:
            self._refused = error.code()

    def _note(self, error: KafkaError) -> None:
        broker, reason = reason_of(error.str())
        if broker:
            self._reasons[broker], self._codes[broker] = reason, error.code()
            if not is_bootstrap(error.str()):
                self._given[broker] = reason
        elif error.code() >= 0:
            self._reasons[""] = in_words(error)

    def _why(self) -> str:
        if not self._given or self._refused is not None:
            return self._why_nobody()
        return (
            f"Kafka at {self._kafka.bootstrap_servers} answers, and gives addresses of its brokers where none does "
            f"within {self._timeout_s:g} s: {listed(self._given)}; its advertised.listeners must be addresses that can "
            "be reached from here"
        )

    def _why_nobody(self) -> str:
        kafka = self._kafka
        code = self._refused
        if code is None and len(codes := set(self._codes.values())) == 1:
            (code,) = codes
        advice = _ADVICE.get(code, "") if code is not None else ""
        reason = listed(self._reasons, alone="," not in kafka.bootstrap_servers)
        within = "" if self._refused is not None else f" within {self._timeout_s:g} s"
        verb = "and this client do not agree" if self._refused is not None else f"does not answer{within}"
        protocol = f" ({kafka.security_protocol})"
        return (
            f"Kafka at {kafka.bootstrap_servers}{protocol} {verb}: {reason or _NO_REASON}"
            f"; {advice or _CHECK + ', and MARGIN_KAFKA__SECURITY_PROTOCOL to what it expects'}"
        )
