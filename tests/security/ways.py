"""The settings with which the servers here are reached, each way once."""

from tests.security.servers import OPERATOR, REDIS_USER, Servers

SHARDS = {"MARGIN_TOPICS__SHARDS": "2", "MARGIN_TOPICS__PARTITIONS": "2"}


def by_password(servers: Servers, user: str = OPERATOR) -> dict[str, str]:
    return SHARDS | {
        "MARGIN_KAFKA__BOOTSTRAP_SERVERS": servers.scram.address,
        "MARGIN_KAFKA__SECURITY_PROTOCOL": "SASL_SSL",
        "MARGIN_KAFKA__SASL_MECHANISM": "SCRAM-SHA-512",
        "MARGIN_KAFKA__SASL_USERNAME": user,
        "MARGIN_KAFKA__SASL_PASSWORD_FILE": servers.file("kafka-password", servers.secrets.kafka_password),
        "MARGIN_KAFKA__SSL_CA_LOCATION": str(servers.authority.path),
    }


def by_certificate(servers: Servers) -> dict[str, str]:
    return SHARDS | {
        "MARGIN_KAFKA__BOOTSTRAP_SERVERS": servers.mutual.address,
        "MARGIN_KAFKA__SECURITY_PROTOCOL": "SSL",
        "MARGIN_KAFKA__SSL_CA_LOCATION": str(servers.authority.path),
        "MARGIN_KAFKA__SSL_CERTIFICATE_LOCATION": str(servers.kafka_client.certificate),
        "MARGIN_KAFKA__SSL_KEY_LOCATION": str(servers.kafka_client.key),
        "MARGIN_KAFKA__SSL_KEY_PASSWORD": servers.secrets.kafka_key_password,
    }


def by_certificate_in_options(servers: Servers) -> dict[str, str]:
    properties = {
        "ssl.ca.location": servers.authority.path,
        "ssl.certificate.location": servers.kafka_client.certificate,
        "ssl.key.location": servers.kafka_client.key,
        "ssl.key.password": servers.secrets.kafka_key_password,
        "socket.keepalive.enable": "true",
    }
    return SHARDS | {
        "MARGIN_KAFKA__BOOTSTRAP_SERVERS": servers.mutual.address,
        "MARGIN_KAFKA__SECURITY_PROTOCOL": "SSL",
        "MARGIN_KAFKA__OPTIONS": ",".join(f"{name}={value}" for name, value in properties.items()),
    }


def over_tls(servers: Servers) -> dict[str, str]:
    return {
        "MARGIN_REDIS__URL": servers.redis_url,
        "MARGIN_REDIS__USERNAME": REDIS_USER,
        "MARGIN_REDIS__PASSWORD_FILE": servers.file("redis-password", servers.secrets.redis_password),
        "MARGIN_REDIS__SSL_CA_LOCATION": str(servers.authority.path),
        "MARGIN_REDIS__SSL_CERTIFICATE_LOCATION": str(servers.redis_client.certificate),
        "MARGIN_REDIS__SSL_KEY_LOCATION": str(servers.redis_client.key),
        "MARGIN_REDIS__SSL_KEY_PASSWORD_FILE": servers.file("redis-key", servers.secrets.redis_key_password),
    }


def over_socket(servers: Servers) -> dict[str, str]:
    return {
        "MARGIN_REDIS__URL": f"unix://{servers.socket}?db=0",
        "MARGIN_REDIS__USERNAME": REDIS_USER,
        "MARGIN_REDIS__PASSWORD": servers.secrets.redis_password,
    }
