"""What deploy/ holds keeps secrets out, ports closed and rights small, as far as its files tell."""

import configparser
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SERVICES: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yml").read_text())["services"]
UNITS = sorted(path.name for path in DEPLOY.glob("*.service"))


def test_the_image_is_built_from_a_list_of_what_may_enter_it() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    assert {"**/*.key", "**/tokens.json", "**/*.sqlite"} <= set(lines)
    admitted = {line[1:] for line in lines if line.startswith("!")}
    assert admitted >= {"client", "server", "proto", "pyproject.toml"} and all(
        (ROOT / each).exists() for each in admitted
    )


def test_the_image_has_a_pinned_base_and_no_root() -> None:
    text = (DEPLOY / "Containerfile").read_text()
    assert re.search(r"^FROM python:\d+\.\d+\.\d+-slim-\w+$", text, re.MULTILINE)
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE)[-1] == "1000:1000"
    assert "HEALTHCHECK" in text


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_has_limits_a_health_check_and_few_rights(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["user"] == "1000:1000"
    assert "no-new-privileges:true" in service["security_opt"]
    assert {"mem_limit", "pids_limit", "cpus", "healthcheck"} <= service.keys()
    assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", []))
    assert not re.search("token|secret|password", str(service.get("environment", {})), re.IGNORECASE)


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_runs_without_root_and_within_limits(name: str) -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / name)
    service = dict(unit["Service"])
    assert service["User"] == "fedfree" and service["CapabilityBoundingSet"] == ""
    assert service["ProtectSystem"] == "strict" and service["ReadWritePaths"] == "/srv/fedfree"
    assert service["NoNewPrivileges"] == "true" and service["UMask"] == "0077"
    assert {"MemoryMax", "TasksMax", "LimitNOFILE"} <= service.keys()


def test_each_program_that_stays_has_a_unit() -> None:
    commands = " ".join((DEPLOY / name).read_text() for name in UNITS)
    for command in ("fedfree-server up", "fedfree-server serve", "fedfree-client up"):
        assert command in commands


def test_the_proxy_bounds_what_one_address_may_do() -> None:
    text = (DEPLOY / "nginx.conf").read_text()
    for directive in ("limit_conn ", "limit_req ", "client_header_timeout", "client_body_timeout"):
        assert directive in text
