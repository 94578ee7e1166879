"""What is deployed: files that agree with each other and with the package, a unit that systemd
takes, and curl's example against a gateway.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from gateway_servers import Model, gateway, models, says, two

from stillhouse.serve.gateway_file import load_gateway, secrets_of
from stillhouse.serve.traffic_log import TrafficLog
from stillhouse.serve.workers import END_S

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "examples" / "deploy"
FILE = DEPLOY / "gateway.yaml"
UNIT = DEPLOY / "systemd" / "stillhouse-gateway.service"


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    return found


def unit() -> dict[str, str]:
    pairs = (line.partition("=") for line in UNIT.read_text(encoding="utf-8").splitlines())
    return {name: value for name, equals, value in pairs if equals and not name.startswith("#")}


def test_the_gateways_file_is_read_and_lets_nobody_in_without_a_key() -> None:
    file = load_gateway(FILE)
    assert file.needs_key
    assert file.listen.workers > 1
    assert file.log.url is not None
    assert "postgresql://" in file.log.url
    assert ":" not in file.log.url.removeprefix("postgresql://")  # no password in a file
    variables = {one.api_key_env for one in file.upstreams.values() if one.api_key_env}
    assert file.admin is not None
    variables.add(file.admin.key_env)
    assert secrets_of(file, dict.fromkeys(variables, "x" * 32)).keys() == {"gpt", ""}


def test_compose_gives_the_gateway_every_variable_and_only_loopback_ports() -> None:
    file, services = load_gateway(FILE), compose()["services"]
    place = services["gateway"]
    needed = {one.api_key_env for one in file.upstreams.values() if one.api_key_env}
    assert file.admin is not None
    needed |= {file.admin.key_env, "STILLHOUSE_PSEUDONYM_SECRET", "PGPASSWORD"}
    assert set(place["environment"]) == needed
    asked = set(re.findall(r"\$\{(\w+):\?", (DEPLOY / "compose.yaml").read_text(encoding="utf-8")))
    told = re.findall(r"^(\w+)=$", (DEPLOY / "example.env").read_text(encoding="utf-8"), re.M)
    assert asked == set(told)
    ports = {str(file.listen.port), str(file.admin.port)}
    assert {one.rpartition(":")[2] for one in place["ports"]} == ports
    assert all(one.startswith("127.0.0.1:") for one in place["ports"])
    assert "ports" not in services["db"]
    host = re.search(r"@(\w+)/", file.log.url or "")
    assert host is not None
    assert host.group(1) in services
    assert place["volumes"] == ["./gateway.yaml:/etc/stillhouse/gateway.yaml:ro"]
    assert set(place["networks"]) == {"inside", "outside"}
    assert services["db"]["networks"] == ["inside"]
    assert int(place["stop_grace_period"].removesuffix("s")) >= file.listen.drain_s + END_S


def test_the_image_is_made_of_what_is_here() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    copied = [
        name for line in re.findall(r"^COPY (?!--)(.*) \S+$", text, re.M) for name in line.split()
    ]
    assert copied
    assert all((ROOT / name).exists() for name in copied)
    kept = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8")
    assert {f"!{name}" for name in copied} <= set(kept.split())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = re.search(r"^ARG EXTRAS=(\S+)$", text, re.M)
    assert extras is not None
    assert set(extras.group(1).split(",")) <= set(project["optional-dependencies"])
    assert project["scripts"]["stillhouse"] == "stillhouse.cli:main"
    assert re.search(r'^ENTRYPOINT \["/opt/stillhouse/bin/stillhouse"\]$', text, re.M)
    assert re.search(r'^CMD \["serve", "/etc/stillhouse/gateway.yaml"\]$', text, re.M)
    file = load_gateway(FILE)
    assert file.admin is not None
    assert f"EXPOSE {file.listen.port} {file.admin.port}" in text
    assert f"http://127.0.0.1:{file.listen.port}/healthz" in text
    build = compose()["services"]["gateway"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    assert re.search(r"^USER \d+$", text, re.M)


def test_the_unit_waits_for_the_drain_and_is_hardened(tmp_path: Path) -> None:
    settings, file = unit(), load_gateway(FILE)
    assert int(settings["TimeoutStopSec"]) >= file.listen.drain_s + END_S
    assert TrafficLog.close.__defaults__[0] < END_S  # type: ignore[index]
    assert settings["KillMode"] == "mixed"
    assert settings["ExecStart"].endswith("stillhouse serve /etc/stillhouse/gateway.yaml")
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    text = UNIT.read_text(encoding="utf-8")
    for name, here in (("ExecStart", "/bin/true"), ("User", "daemon"), ("Group", "daemon")):
        text = re.sub(rf"^{name}=\S+", f"{name}={here}", text, flags=re.M)
    path = tmp_path / UNIT.name
    path.write_text(text, encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    looked = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert looked.returncode == 0, looked.stdout.splitlines()[-1]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curls_example_asks_streams_and_gives_feedback() -> None:
    teacher = Model(says("good"))
    script = str(ROOT / "examples" / "gateway_curl.sh")

    def run(*said: str) -> subprocess.CompletedProcess[str]:
        command = ["sh", script, *said]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    with models(teacher), gateway(two(teacher, None)) as running:
        done = run(f"{running.url}/v1", "t", "key")
        outcomes = list(running.log.outcomes)
        failed = run(f"{running.url}/v1", "other")
    assert done.returncode == 0, done.stderr
    assert '"content": "good"' in done.stdout or '"content":"good"' in done.stdout
    assert "x-stillhouse-variant: teacher" in done.stdout
    assert "data: [DONE]" in done.stdout
    assert '"object": "feedback"' in done.stdout
    assert [one.score for one in outcomes] == [1.0]
    assert failed.returncode != 0
    assert "There is no such model" in failed.stdout
