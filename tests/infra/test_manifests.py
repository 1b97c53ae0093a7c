"""The image, docker-compose.yml and the Kubernetes manifests: accepted settings, nobody root, nothing written."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from streams.settings import load

ROOT = Path(__file__).resolve().parents[2]
ROLES = {"topics", "router", "oracle", "engine"}

MANIFESTS = list(yaml.safe_load_all((ROOT / "infra/k8s/margin-clearing.yaml").read_text(encoding="utf-8")))
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
DOCKERFILE = (ROOT / "infra/docker/Dockerfile").read_text(encoding="utf-8")


def pods() -> Iterator[tuple[str, Mapping[str, Any]]]:
    for manifest in MANIFESTS:
        if "template" in manifest.get("spec", {}):
            yield manifest["metadata"]["name"], manifest["spec"]["template"]["spec"]


def test_the_image_runs_as_a_user_by_number() -> None:
    user = re.search(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)
    assert user
    assert int(user[1]) > 0
    assert f"--uid {user[1]} " in DOCKERFILE
    assert {pod["securityContext"]["runAsUser"] for _, pod in pods()} == {int(user[1])}


@pytest.mark.parametrize(("name", "pod"), list(pods()))
def test_a_pod_can_write_nothing_but_its_temporary_folder(name: str, pod: Mapping[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    (container,) = pod["containers"]
    assert container["args"][0] in ROLES
    assert container["securityContext"] == {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["volumes"] == [{"name": "tmp", "emptyDir": {}}]
    assert container["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]


def test_every_role_is_there() -> None:
    assert {pod["containers"][0]["args"][0] for _, pod in pods()} == ROLES
    assert {name for name, service in COMPOSE["services"].items() if service.get("image") == "margin-clearing"} == ROLES


def test_a_service_of_compose_can_write_nothing_but_its_temporary_folder() -> None:
    for name in ROLES:
        service = COMPOSE["services"][name]
        assert (service["read_only"], service["tmpfs"], service["cap_drop"]) == (True, ["/tmp"], ["ALL"])


def test_where_to_go_is_given_and_every_setting_is_accepted() -> None:
    (config,) = (manifest["data"] for manifest in MANIFESTS if manifest["kind"] == "ConfigMap")
    services = [COMPOSE["services"][name]["environment"] for name in ROLES]
    for variables in (config, *services):
        # ${NAME:-default} as compose resolves it in an environment that says nothing.
        plain = {name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value) for name, value in variables.items()}
        settings = load(plain)
        assert {"MARGIN_KAFKA__BOOTSTRAP_SERVERS", "MARGIN_REDIS__URL"} <= plain.keys()
        assert settings.service.metrics_port == 9100
