"""The probes: what an orchestrator reads off one port."""

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import Counter

from streams import probes
from streams.errors import SettingsError
from streams.probes import Condition
from streams.watchdog import Watchdog

SEEN = Counter("margin_test_probes_seen", "A metric of this test")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Served:
    """A served process: its watchdog, and the conditions that its role would say."""

    def __init__(self) -> None:
        self.dog = Watchdog(60.0)
        self.conditions = [Condition("shards_to_take", 0, 0)]
        self.port = free_port()
        self.stop = probes.serve(self.port, self.dog, lambda: self.conditions)

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def get_json(self, path: str) -> tuple[int, dict[str, Any]]:
        code, body = self.get(path)
        return code, json.loads(body)


def test_a_process_that_is_started_again_has_its_port_at_once() -> None:
    """The connections that the one before has closed keep its port for a minute."""
    first = Served()
    assert first.get("/livez")[0] == 200
    first.stop()
    probes.serve(first.port, first.dog, list)()


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    new_server = Served()
    yield new_server
    new_server.stop()


def test_a_role_is_ready_when_every_condition_holds(served: Served) -> None:
    served.conditions = [Condition("shards_to_take", 0, 0), Condition("is_in_group", 1, 1, "at_least")]
    code, body = served.get_json("/readyz")
    assert (code, body["ready"]) == (200, True)
    assert body["conditions"] == [
        {"name": "shards_to_take", "holds": True, "value": 0, "at_most": 0},
        {"name": "is_in_group", "holds": True, "value": 1, "at_least": 1},
    ]


@pytest.mark.parametrize(
    "condition",
    [
        Condition("marks_age_ms", 5001, 5000),
        Condition("marks_age_ms", None, 5000),
        Condition("is_in_group", 0, 1, "at_least"),
    ],
)
def test_one_condition_that_does_not_hold_makes_it_not_ready_and_is_named(served: Served, condition: Condition) -> None:
    served.conditions = [Condition("shards_to_take", 0, 0), condition]
    code, body = served.get_json("/readyz")
    assert (code, body["ready"]) == (503, False)
    assert [each["name"] for each in body["conditions"] if not each["holds"]] == [condition.name]


def test_liveness_is_the_watchdogs_view(served: Served) -> None:
    served.dog.beat("engine", "walking marks")
    code, body = served.get_json("/livez")
    assert (code, body["live"]) == (200, True)
    (loop,) = body["loops"]
    assert (loop["name"], loop["doing"], loop["at_most"]) == ("engine", "walking marks", 60.0)
    served.dog.limit_s = -1.0
    code, body = served.get_json("/livez")
    assert (code, body["live"]) == (503, False)
    served.dog.limit_s = 60.0


def test_metrics_are_on_the_same_port(served: Served) -> None:
    SEEN.inc()
    code, body = served.get("/metrics")
    assert code == 200
    assert "margin_test_probes_seen_total 1.0" in body


def test_an_unknown_path_says_which_there_are(served: Served) -> None:
    assert served.get("/health") == (404, "/livez, /readyz, /metrics\n")


def test_a_port_that_is_taken_is_a_settings_error(served: Served) -> None:
    with pytest.raises(SettingsError, match=f"MARGIN_SERVICE__METRICS_PORT={served.port}: "):
        probes.serve(served.port, served.dog, list)


def test_port_0_serves_nothing(served: Served) -> None:
    probes.serve(0, served.dog, list)()
