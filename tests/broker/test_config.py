"""What every client is configured with."""

import pytest
from confluent_kafka import KafkaError

from streams.broker import config
from streams.errors import BrokerError
from streams.settings import KafkaSettings


def test_a_consumer_that_has_ended_for_good_says_so_instead_of_polling_in_vain() -> None:
    on_error = config.consumer(KafkaSettings(), "test", "group")["error_cb"]
    on_error(KafkaError(KafkaError._ALL_BROKERS_DOWN))
    with pytest.raises(BrokerError, match="fenced"):
        on_error(KafkaError(KafkaError._FATAL, "fenced by another consumer", fatal=True))
