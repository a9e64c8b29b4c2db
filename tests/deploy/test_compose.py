"""docker-compose.yml by the part of the Compose specification that it uses, and our own rules."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tests.deploy.dockerfile import stages
from tests.deploy.expressions import DEPLOY, ROOT

COMPOSE = ROOT / "docker-compose.yml"

Duration = Annotated[str, Field(pattern=r"^(\d+(us|ms|s|m|h))+$")]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9._-]+$")]
Command = str | list[str]


class Strict(BaseModel):
    """As in the specification: a key that it does not name is an error, but for `x-...`."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Build(Strict):
    context: str
    dockerfile: str = "Dockerfile"
    target: str | None = None
    args: dict[str, str] = {}


class Health(Strict):
    test: Command
    interval: Duration
    timeout: Duration
    retries: int
    start_period: Duration


class Dependency(Strict):
    condition: Literal["service_started", "service_healthy", "service_completed_successfully"]


class Device(Strict):
    capabilities: list[str]
    driver: str | None = None
    count: int | Literal["all"] = "all"


class Reservations(Strict):
    devices: list[Device] = []


class Resources(Strict):
    reservations: Reservations


class Deployment(Strict):
    replicas: int | None = None
    resources: Resources | None = None


class Service(Strict):
    image: Annotated[str, Field(pattern=r"^[\w./-]+:[\w.-]+$")]
    build: Build | None = None
    command: Command | None = None
    profiles: list[Name] = []
    restart: Literal["no", "always", "on-failure", "unless-stopped"]
    read_only: bool
    cap_drop: list[str]
    cap_add: list[str] = []
    security_opt: list[str]
    environment: dict[Annotated[str, Field(pattern=r"^[A-Z0-9_]+$")], str] = {}
    depends_on: dict[Name, Dependency] = {}
    networks: list[Name]
    ports: list[str] = []
    volumes: list[str] = []
    tmpfs: list[str] = []
    user: str | None = None
    init: bool = False
    stop_grace_period: Duration | None = None
    healthcheck: Health | None = None
    deploy: Deployment | None = None


class Network(Strict):
    internal: bool = False


class Volume(Strict):
    external: bool = False


class Compose(Strict):
    name: Name
    services: dict[Name, Service]
    networks: dict[Name, Network]
    volumes: dict[Name, Volume]


def read(text: str) -> Compose:
    content: dict[str, Any] = yaml.safe_load(text)
    return Compose.model_validate(
        {key: value for key, value in content.items() if not key.startswith("x-")}
    )


@pytest.fixture(scope="module")
def compose() -> Compose:
    return read(COMPOSE.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("cap_drop:", "cap_dropp:"),
        ("condition: service_healthy", "condition: healthy"),
        ("start_period: 10s", "start_period: 10 seconds"),
        ("image: prom/prometheus:v3.5.0", "image: prom/prometheus"),
    ],
)
def test_a_slip_in_the_file_would_be_seen(right: str, wrong: str) -> None:
    text = COMPOSE.read_text(encoding="utf-8")
    assert right in text
    with pytest.raises(ValidationError):
        read(text.replace(right, wrong))


def test_names_point_at_what_is_there(compose: Compose) -> None:
    for service in compose.services.values():
        assert set(service.depends_on) <= set(compose.services)
        assert set(service.networks) <= set(compose.networks)
        for mount in service.volumes:
            source = mount.split(":")[0]
            if not source.startswith("."):
                assert source in compose.volumes
            else:
                assert (ROOT / source).exists(), mount
        for name, dependency in service.depends_on.items():
            if dependency.condition == "service_healthy":
                other = compose.services[name]
                assert other.healthcheck or other.build, f"{name} has no health check"


def test_every_service_is_hardened_and_its_image_is_pinned(compose: Compose) -> None:
    for name, service in compose.services.items():
        assert service.read_only, name
        assert service.cap_drop == ["ALL"], name
        assert service.cap_add == [], name
        assert service.security_opt == ["no-new-privileges:true"], name
        assert not service.image.endswith(":latest"), name
        assert service.healthcheck or service.build, name
        assert all(m.endswith(":ro") for m in service.volumes if m.startswith(".")), name


def test_ports_are_open_to_this_machine_only(compose: Compose) -> None:
    published = {name: s.ports for name, s in compose.services.items() if s.ports}
    assert set(published) == {"server", "server-gpu", "prometheus", "grafana"}
    for ports in published.values():
        assert all(re.fullmatch(r"127\.0\.0\.1:\$\{[A-Z_]+:-\d+\}:\d+", port) for port in ports)
    assert compose.networks["queue"].internal
    assert compose.services["valkey"].networks == ["queue"]


def test_no_secret_is_written_down(compose: Compose) -> None:
    for name, service in compose.services.items():
        for key, value in service.environment.items():
            if re.search(r"PASSWORD|KEY|SECRET|TOKEN", key):
                assert re.fullmatch(r"\$\{\w+(:-|:\?.+)\}", value), f"{name}: {key}"
    password = compose.services["grafana"].environment["GF_SECURITY_ADMIN_PASSWORD"]
    assert password.startswith("${GRAFANA_PASSWORD:?")


def test_the_runbook_says_where_variables_without_a_default_come_from() -> None:
    runbook = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    needed = set(re.findall(r"\$\{(\w+):\?", COMPOSE.read_text(encoding="utf-8")))
    assert needed == {"GRAFANA_PASSWORD"}
    told = runbook.partition("\n## ")[0]
    assert all(f"`{name}=...` into a file `.env`" in " ".join(told.split()) for name in needed)
    ups = re.findall(r"docker compose up[^`]*", runbook)
    assert ups
    assert all(" -d " in command for command in ups)


def test_our_services_are_built_from_stages_of_the_dockerfile(compose: Compose) -> None:
    ours = {name: s for name, s in compose.services.items() if s.build}
    targets = {name: service.build.target for name, service in ours.items() if service.build}
    assert targets == {"server": "cpu", "server-gpu": "cuda", "worker": "cpu"}
    assert set(targets.values()) <= set(stages())
    for service in ours.values():
        assert "data:/data" in service.volumes
        assert any(mount.startswith("/tmp:") for mount in service.tmpfs)
        assert service.depends_on["valkey"].condition == "service_healthy"
    assert ours["worker"].command == ["allrounder", "worker"]


def test_the_gpu_is_reserved_by_the_profile_that_asks_for_it(compose: Compose) -> None:
    asking = {n for n, s in compose.services.items() if s.deploy and s.deploy.resources}
    assert asking == {n for n, s in compose.services.items() if s.profiles} == {"server-gpu"}
    deployment = compose.services["server-gpu"].deploy
    assert deployment is not None
    assert deployment.resources is not None
    (device,) = deployment.resources.reservations.devices
    assert device.capabilities == ["gpu"]


def test_prometheus_scrapes_services_that_exist(compose: Compose) -> None:
    path = DEPLOY / "prometheus" / "prometheus.yml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    hosts = set()
    for job in config["scrape_configs"]:
        for static in job.get("static_configs", []):
            hosts |= {target.partition(":")[0] for target in static["targets"]}
        for found in job.get("dns_sd_configs", []):
            hosts |= set(found["names"])
    assert hosts == {name for name, service in compose.services.items() if service.build}
    assert all("front" in compose.services[name].networks for name in hosts)


def docker_compose(folder: Path, **environment: str) -> int | None:
    """Exit code of its own check, or None where there is no `docker compose`."""
    docker = shutil.which("docker")
    if not docker or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        return None
    return subprocess.run(
        [docker, "compose", "--file", COMPOSE, "config", "--quiet"],
        env={"PATH": os.environ["PATH"], "HOME": str(folder), **environment},
        capture_output=True,
    ).returncode


@pytest.mark.timeout(60)
def test_the_file_is_read_by_our_rules_and_by_docker_where_there_is_one(tmp_path: Path) -> None:
    assert read(COMPOSE.read_text(encoding="utf-8")).name == "allrounder"
    assert docker_compose(tmp_path, GRAFANA_PASSWORD="only-for-this-test") in (None, 0)
    assert docker_compose(tmp_path) != 0
