"""The dashboard on a gateway's admin port: its own login, beside the admin API, ended with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from stillhouse.serve.gateway_file import load_gateway
from stillhouse.serve.gateway_sections import AdminSection

KEY = "admin-0123456789"


def asked(url: str, key: str | None = KEY) -> tuple[int, str]:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def gateway_yaml(folder: Path, **admin: object) -> Path:
    file = {
        "listen": {"port": 0, "drain_s": 20, **admin.pop("listen", {})},  # type: ignore[dict-item]
        "admin": {"port": 0, **admin},
        "upstreams": {"big": {"base_url": "http://127.0.0.1:9/v1", "model": "big"}},
        "tasks": {"reviews": {"teacher": "big"}},
        "log": {"url": f"sqlite:///{folder}/g.db"},
    }
    path = folder / "gateway.yaml"
    path.write_text(yaml.safe_dump(file), encoding="utf-8")
    return path


@pytest.mark.full
@pytest.mark.parametrize("workers", [1, 2])
def test_the_gateway_serves_it_and_ends_with_a_stream_open(tmp_path: Path, workers: int) -> None:
    path = gateway_yaml(tmp_path, listen={"workers": workers})
    environment = os.environ | {
        "STILLHOUSE_ADMIN_KEY": KEY,
        "STILLHOUSE_PSEUDONYM_SECRET": "0123456789abcdef",
    }
    command = [sys.executable, "-m", "stillhouse", "serve", str(path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        admin = ""
        while "admin" not in admin:
            admin = process.stdout.readline()
        base = admin.split(" on ")[1].strip()
        status, page = asked(f"{base}/dashboard/")
        assert status == 200
        assert 'href="/dashboard/traffic"' in page
        assert asked(f"{base}/dashboard/static/theme.js", None)[0] == 200
        assert "Admin key" in asked(f"{base}/dashboard/", None)[1]
        assert asked(f"{base}/dashboard/events", None)[0] == 401
        assert "reviews" in json.loads(asked(f"{base}/state")[1])["tasks"]
        assert asked(f"{base}/state", None)[0] == 401
        request = urllib.request.Request(
            f"{base}/dashboard/events", headers={"Authorization": f"Bearer {KEY}"}
        )
        stream = urllib.request.urlopen(request)
        assert stream.readline() == b"retry: 3000\n"
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
        assert time.monotonic() - begun < 12  # not the 20 s that open requests get
        stream.close()


def test_where_it_is_found(tmp_path: Path) -> None:
    file = load_gateway(gateway_yaml(tmp_path, loop="ops/loop.yaml"))
    assert file.admin is not None
    assert file.admin.loop == tmp_path / "ops" / "loop.yaml"
    assert AdminSection().dashboard
