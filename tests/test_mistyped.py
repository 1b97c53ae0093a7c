"""What is mistyped may hold a secret: no complaint about it shows one."""

import os
import subprocess
import sys

import pytest

from streams.access.kafka_properties import sort_properties
from streams.access.redis_address import masked_url
from streams.errors import SettingsError

SECRET = "Mrk9Qz-hunter2"


@pytest.mark.parametrize(
    "arguments",
    [
        ("router", f"--redis-pasword={SECRET}"),
        ("router", "--kafka-password", SECRET),
        ("router", f"MARGIN_KAFKA__SASL_PASSWORD={SECRET}"),
        ("router", f"-password={SECRET}"),
        (f"sasl.password={SECRET}",),
        ("status", "--shards", f"password={SECRET}"),
        ("status", f"password:{SECRET}"),
        ("status", "--redis-url", f"redis://user:{SECRET}@host:6379/0"),
        ("status", "--redis-url", f"redis://host:6379/0?password={SECRET}"),
        ("status", "--redis-url", f"redis://host:6379/0?db=0&ssl_password={SECRET}"),
        ("status", "--redis-url", f"redsi://host:6379/0?token={SECRET}"),
        ("status", "--bootstrap-servers", f"kafka://user:{SECRET}@host:9092"),
        ("status", "--bootstrap-servers", f"user:{SECRET}@127.0.0.1:1"),
        ("demo", "--setting", f"MARGIN_KAFKA__SASL_PASSWORD:{SECRET}"),
        ("demo", "--setting", f"MARGIN_KAFKA__SASL_PASSWORD={SECRET}"),
        ("demo", "--setting", f"MARGIN_KAFKA__OPTIONS=sasl.password={SECRET}"),
        (
            "demo",
            "--setting",
            "MARGIN_KAFKA__OPTIONS=sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required "
            f'username="u" password="{SECRET}";',
        ),
        ("demo", "--redis-url", f"redis://host:6379/0?password={SECRET}"),
        ("bench", "ticks", "--accounts", f"secret={SECRET}"),
    ],
)
def test_a_mistyped_argument_tells_no_secret(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "streams.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "name",
    ["MARGIN_KAFKA__OPTIONS", "MARGIN_KAFKA__BOOTSTRAP_SERVERS", "MARGIN_REDIS__URL", "MARGIN_KAFKA__SASL_PASWORD"],
)
@pytest.mark.parametrize(
    "value",
    [
        f"sasl.jaas.config=PlainLoginModule required password='{SECRET}';",
        f"check.crcs={SECRET}",
        f"sasl.password={SECRET},x",
        f"kafka://user:{SECRET}@host:9092",
        f"redis://host/0?db=0&ssl_password={SECRET}",
    ],
)
def test_a_setting_in_the_wrong_place_tells_no_secret(name: str, value: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "streams.cli", "settings"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "COLUMNS": "200", name: value},
    )
    assert SECRET not in done.stdout + done.stderr


def test_nothing_behind_the_question_mark_of_a_url_is_shown_but_what_is_known() -> None:
    assert masked_url("rediss://host/0?db=1&ssl_cert_reqs=none") == "rediss://host/0?db=1&ssl_cert_reqs=none"
    assert SECRET not in masked_url(f"redis://host/0?db=0&ssl_password={SECRET}")
    assert SECRET not in masked_url(f"redis://host/0?db={SECRET}")


@pytest.mark.parametrize("entry", ["check.crcs=", "enable.ssl.certificate.verification=", "socket.timeout.ms="])
def test_no_value_of_a_kafka_property_is_told(entry: str) -> None:
    with pytest.raises(SettingsError) as told:
        sort_properties(entry + SECRET, "MARGIN_KAFKA__OPTIONS")
    assert SECRET not in str(told.value)
