"""What README.md says that each role must be allowed: the tests grant exactly that."""

import re
from collections.abc import Iterator
from pathlib import Path

from confluent_kafka.admin import AclBinding, AclOperation, AclPermissionType, ResourcePatternType, ResourceType

from schemas.topics import all_topics

_README = Path(__file__).resolve().parents[2] / "README.md"
_EVERY_TOPIC = "every topic above"
_KINDS = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional id": ResourceType.TRANSACTIONAL_ID,
    "cluster": ResourceType.BROKER,
}
_OPERATIONS = {
    "Read": AclOperation.READ,
    "Write": AclOperation.WRITE,
    "Alter": AclOperation.ALTER,
    "Create": AclOperation.CREATE,
    "Describe": AclOperation.DESCRIBE,
    "DescribeConfigs": AclOperation.DESCRIBE_CONFIGS,
}


def permissions() -> Iterator[tuple[str, str, list[str], list[str]]]:
    """(who, kind of resource, names, operations) of each row of the table."""
    rows = re.findall(r"^\| (\w[\w ,]*) \| (topic|group|transactional id|cluster) \| (.*) \| (.*) \|$", _text(), re.M)
    assert rows, "README.md has no table of permissions"
    for who, kind, names, operations in rows:
        for each in who.split(", "):
            yield each, kind, names.split(", "), operations.split(", ")


def bindings(who: str, user: str) -> list[AclBinding]:
    """The ACLs of ``who`` in the table, for ``user``."""
    allowed = []
    for each, kind, names, operations in permissions():
        if each != who:
            continue
        for name in _names(names):
            prefixed = name.endswith("*") and name != "*"
            pattern = ResourcePatternType.PREFIXED if prefixed else ResourcePatternType.LITERAL
            allowed += [
                AclBinding(
                    _KINDS[kind],
                    name.removesuffix("*") if prefixed else name,
                    pattern,
                    f"User:{user}",
                    "*",
                    _OPERATIONS[operation],
                    AclPermissionType.ALLOW,
                )
                for operation in operations
            ]
    assert allowed, f"README.md allows {who} nothing"
    return allowed


def redis_rules() -> dict[str, list[str]]:
    """The rules of each Redis user, behind its password."""
    users = re.findall(r"^ACL SETUSER (\S+) on >\S+ (.*)$", _text(), re.M)
    assert users, "README.md does not say what a Redis user is allowed"
    return {user: rules.split() for user, rules in users}


def _names(cells: list[str]) -> list[str]:
    if cells == [_EVERY_TOPIC]:
        return [topic.name for topic in all_topics()]
    return ["kafka-cluster" if cell == "`kafka-cluster`" else cell.strip("`") for cell in cells]


def _text() -> str:
    return _README.read_text(encoding="utf-8")
