"""One Kafka and one Valkey that ask who comes: the servers of every test here.

The Kafka has three doors. The plain one is the administrator's. ``SCRAM`` is TLS with user and password, ``MUTUAL`` is
TLS with a certificate on both sides. An authorizer judges everybody: nothing is allowed to whom nothing was given.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import redis
from confluent_kafka.admin import (
    AclBinding,
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from infra.local.kafka import KafkaServer, Listener
from infra.local.process import TemporaryFolder
from infra.local.valkey import ValkeyServer
from tests.security.certificates import Authority
from tests.security.tls_front import TlsFront

OPERATOR = "operator"
"""May do everything on Kafka, like the certificate of the same name."""
REDIS_USER = "margin"
REDIS_READER = "margin-reader"


@dataclass(frozen=True)
class Secrets:
    """Every secret here, each unlike anything else that could be written anywhere."""

    kafka_password: str = "kafka-Mrk9Qz,=\"'%40 pass/word"
    kafka_key_password: str = "kafka-key-Mrk9Qz-7d1"
    redis_password: str = "redis-Mrk9Qz:@/?#%25-9f3"
    redis_key_password: str = "redis-key-Mrk9Qz-44c"

    def all(self) -> list[str]:
        return [self.kafka_password, self.kafka_key_password, self.redis_password, self.redis_key_password]


class Servers:
    """The two servers, running. Use as a context manager. ``folder`` holds the certificates and the secrets' files."""

    def __init__(self, redis_rules: Mapping[str, Sequence[str]]) -> None:
        self.secrets = Secrets()
        self._redis_rules = redis_rules
        self._ends = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as ends:
            self.folder = ends.enter_context(TemporaryFolder("margin-security-")).path
            self.authority = Authority(self.folder)
            self.stranger = Authority(self.folder, "stranger")
            self._sign()
            self.socket = self.folder / "valkey.sock"
            self.valkey = ends.enter_context(ValkeyServer(self.folder, socket=self.socket))
            self.front = ends.enter_context(TlsFront(self.valkey.port, self.server, self.authority.path))
            self._close_redis()
            self.kafka = ends.enter_context(self._new_kafka())
            self.admin = AdminClient({"bootstrap.servers": self.kafka.bootstrap_servers})
            self.add_user(OPERATOR, self.secrets.kafka_password)
            self._ends = ends.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def file(self, name: str, text: str) -> str:
        """The path of a file that holds ``text`` and the line's end that editors put there."""
        path = self.folder / name
        path.write_text(f"{text}\n")
        return str(path)

    def add_user(self, name: str, password: str) -> None:
        """A user who may come through the door SCRAM."""
        credential = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        user = UserScramCredentialUpsertion(name, credential, password.encode(), b"salt-of-the-tests")
        for future in self.admin.alter_user_scram_credentials([user]).values():
            future.result(timeout=30)

    def allow(self, bindings: Iterable[AclBinding]) -> None:
        for future in self.admin.create_acls(list(bindings)).values():
            future.result(timeout=30)

    @property
    def redis_url(self) -> str:
        """With TLS, without credentials."""
        return f"rediss://localhost:{self.front.port}/0"

    def _sign(self) -> None:
        self.server = self.authority.sign("server")
        self.kafka_client = self.authority.sign(OPERATOR, password=self.secrets.kafka_key_password)
        self.redis_client = self.authority.sign("redis-client", password=self.secrets.redis_key_password)
        self.foreign_client = self.stranger.sign(OPERATOR)

    def _close_redis(self) -> None:
        with redis.Redis.from_url(self.valkey.url) as administrator:
            for user, rules in self._redis_rules.items():
                password = f">{self.secrets.redis_password}"
                administrator.execute_command("ACL", "SETUSER", user, "reset", "on", password, *rules)
            administrator.execute_command("ACL", "SETUSER", "default", "off")

    def _new_kafka(self) -> KafkaServer:
        store = {"ssl.keystore.type": "PEM", "ssl.keystore.location": str(self.server.both)}
        module = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        self.scram = Listener(
            "SCRAM",
            "SASL_SSL",
            store | {"sasl.enabled.mechanisms": "SCRAM-SHA-512", "scram-sha-512.sasl.jaas.config": module},
        )
        trust = {"ssl.truststore.type": "PEM", "ssl.truststore.location": str(self.authority.path)}
        self.mutual = Listener("MUTUAL", "SSL", store | trust | {"ssl.client.auth": "required"})
        return KafkaServer(
            self.folder,
            listeners=[self.scram, self.mutual],
            properties={
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "super.users": f"User:ANONYMOUS;User:{OPERATOR};User:CN={OPERATOR}",
            },
        )
