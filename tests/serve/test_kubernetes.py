"""The Kubernetes manifests: they build, fit the published schemas, and agree with the package."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from stillhouse.core.loop_file import load_loop
from stillhouse.core.recipe_file import load_recipe
from stillhouse.serve.gateway_file import load_gateway
from stillhouse.serve.workers import END_S

HERE = Path(__file__).parents[2] / "examples" / "deploy" / "kubernetes"
ROOT = Path(__file__).parents[2]
VERSION = "1.34.0"
Found = dict[str, Any]


def kustomization() -> Found:
    found: Found = yaml.safe_load((HERE / "kustomization.yaml").read_text(encoding="utf-8"))
    return found


def objects() -> dict[tuple[str, str], Found]:
    """As they are written, before kustomize."""
    found = {}
    for name in kustomization()["resources"]:
        for one in yaml.safe_load_all((HERE / name).read_text(encoding="utf-8")):
            found[one["kind"], one["metadata"]["name"]] = one
    return found


def pod_of(one: Found) -> Found | None:
    """The pod's template of a workload."""
    spec = one.get("spec", {})
    if one["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    found: Found | None = spec.get("template")
    return found


def pods() -> dict[str, Found]:
    made = [(name, pod_of(one)) for (_, name), one in objects().items()]
    return {name: pod for name, pod in made if pod is not None}


def containers() -> Iterator[tuple[str, Found]]:
    for name, pod in pods().items():
        for one in pod["spec"]["containers"]:
            yield name, one


def variables_of(name: str) -> set[str]:
    (one,) = pods()[name]["spec"]["containers"]
    return {variable["name"] for variable in one.get("env", [])}


def test_every_file_is_named_and_every_object_fits_its_schema() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    named = set(kustomization()["resources"]) | {"kustomization.yaml"}
    assert {path.name for path in HERE.glob("*.yaml")} == named
    for one in objects().values():
        validate.validate(one, VERSION, strict=True)
        assert "namespace" not in one["metadata"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
def test_kustomize_builds_it_with_secrets_that_are_not_in_the_repository(tmp_path: Path) -> None:
    place = tmp_path / "kubernetes"
    shutil.copytree(HERE, place)
    template = (HERE / "secrets.example.env").read_text(encoding="utf-8")
    (place / "secrets.env").write_text(re.sub("=$", "=x", template, flags=re.M), encoding="utf-8")
    done = subprocess.run(
        ["kubectl", "kustomize", str(place)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    assert len(built) == len(objects()) + 2
    secret = next(one for one in built if one["kind"] == "Secret")
    files = next(one for one in built if one["kind"] == "ConfigMap")
    asked = re.findall(r"^(\w+)=$", template, re.M)
    assert set(secret["data"]) == set(asked)
    assert set(files["data"]) == {"gateway.yaml", "loop.yaml", "recipe.yaml"}
    for one in built:
        pod = pod_of(one)
        if pod is None:
            continue
        assert pod["metadata"]["labels"]["app.kubernetes.io/part-of"] == "stillhouse"
        refs = [
            variable["valueFrom"]["secretKeyRef"]
            for container in pod["spec"]["containers"]
            for variable in container.get("env", [])
            if "valueFrom" in variable
        ]
        assert all(ref["name"] == secret["metadata"]["name"] for ref in refs)
        assert {ref["key"] for ref in refs} <= set(asked)
        named = [vol["configMap"]["name"] for vol in pod["spec"]["volumes"] if "configMap" in vol]
        assert set(named) <= {files["metadata"]["name"]}


def test_no_secret_is_in_the_files() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(HERE.rglob("*.yaml")))
    assert "kind: Secret" not in text
    assert not re.search(r"(?i)(password|_key|secret):? *value", text)
    template = (HERE / "secrets.example.env").read_text(encoding="utf-8")
    assert all(line.startswith("#") or line.endswith("=") for line in template.splitlines())
    assert "examples/deploy/kubernetes/secrets.env" in (ROOT / ".gitignore").read_text().split()


def test_the_files_are_read_and_agree() -> None:
    gateway = load_gateway(HERE / "files" / "gateway.yaml")
    loop = load_loop(HERE / "files" / "loop.yaml")
    assert gateway.needs_key
    assert ":" not in (gateway.log.url or "").removeprefix("postgresql://")
    assert Path(loop.gateway).name == "gateway.yaml"
    assert loop.tasks.keys() <= gateway.tasks.keys()
    for name, task in loop.tasks.items():
        recipe = load_recipe(Path(task.recipe))
        evidence = gateway.tasks[name].experiment.evidence
        assert evidence is not None
        assert evidence.task is not None
        assert getattr(evidence.task, "labels", None) == getattr(recipe.task, "labels", None)
    mounts = {
        mount["mountPath"]: mount
        for mount in pods()["retrain"]["spec"]["containers"][0]["volumeMounts"]
    }
    for place in (loop.registry, loop.folder, loop.tasks["reviews"].run):
        assert str(place).startswith("/var/lib/stillhouse/")
    assert not mounts["/var/lib/stillhouse"].get("readOnly")


def test_variables_are_those_that_the_files_name() -> None:
    gateway = load_gateway(HERE / "files" / "gateway.yaml")
    keys = {key for one in gateway.upstreams.values() if (key := getattr(one, "api_key_env", None))}
    assert gateway.admin is not None
    needed = keys | {gateway.admin.key_env, "STILLHOUSE_PSEUDONYM_SECRET", "PGPASSWORD"}
    assert variables_of("gateway") == needed
    assert variables_of("retrain") >= keys | {gateway.admin.key_env, "PGPASSWORD"}
    assert variables_of("monitor") >= keys | {"PGPASSWORD"}


def test_the_gateway_is_probed_drained_and_never_without_a_pod() -> None:
    gateway = load_gateway(HERE / "files" / "gateway.yaml")
    pod = pods()["gateway"]["spec"]
    (one,) = pod["containers"]
    ports = {port["name"]: port["containerPort"] for port in one["ports"]}
    assert gateway.admin is not None
    assert ports == {"http": gateway.listen.port, "admin": gateway.admin.port}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert one[probe]["httpGet"] == {"path": "/healthz", "port": "http"}
    begun = one["startupProbe"]["periodSeconds"] * one["startupProbe"]["failureThreshold"]
    assert begun > 120  # upstreams.NAME.start_s
    pause = one["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= pause + gateway.listen.drain_s + END_S
    budget = objects()["PodDisruptionBudget", "gateway"]["spec"]
    deployment = objects()["Deployment", "gateway"]["spec"]
    assert 1 <= budget["minAvailable"] < deployment["replicas"]
    assert budget["selector"] == deployment["selector"]
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_every_container_is_confined_and_has_bounds() -> None:
    dockerfile = (HERE.parent / "Dockerfile").read_text(encoding="utf-8")
    user = re.search(r"^USER (\d+)$", dockerfile, re.M)
    assert user is not None
    for name, pod in pods().items():
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        if any(one["image"].startswith("stillhouse-") for one in spec["containers"]):
            assert spec["securityContext"]["runAsUser"] == int(user.group(1)), name
    for name, one in containers():
        context = one["securityContext"]
        assert context["readOnlyRootFilesystem"] is True, name
        assert context["allowPrivilegeEscalation"] is False, name
        assert context["capabilities"] == {"drop": ["ALL"]}, name
        assert {"cpu", "memory"} <= set(one["resources"]["requests"]), name
        assert "memory" in one["resources"]["limits"], name
        assert any(mount["mountPath"] == "/tmp" for mount in one["volumeMounts"]), name


def test_images_are_named_with_a_tag() -> None:
    ours = {one["name"]: one["newTag"] for one in kustomization()["images"]}
    for name, one in containers():
        image = one["image"]
        assert image in ours or re.search(r":v?\d", image), name
    assert set(ours) == {"stillhouse-gateway", "stillhouse-loop"}
    compose = yaml.safe_load((HERE.parent / "compose.yaml").read_text(encoding="utf-8"))
    database = compose["services"]["db"]["image"]
    used = {one["image"] for name, one in containers() if name in ("postgres", "backup")}
    assert used == {database}


def test_jobs_of_the_loop_never_run_twice_at_once() -> None:
    jobs = {name: one for (kind, name), one in objects().items() if kind == "CronJob"}
    assert set(jobs) == {"monitor", "retrain", "backup"}
    assert all(one["spec"]["concurrencyPolicy"] == "Forbid" for one in jobs.values())
    for one in jobs.values():
        assert re.fullmatch(r"\S+ \S+ \S+ \S+ \S+", one["spec"]["schedule"])


def test_services_and_policies_point_at_pods_and_ports_that_there_are() -> None:
    labels = {
        name: pod["metadata"]["labels"]["app.kubernetes.io/name"] for name, pod in pods().items()
    }
    ports: dict[str, dict[str, int]] = {}
    for name, one in containers():
        own = {port["name"]: port["containerPort"] for port in one.get("ports", [])}
        ports.setdefault(labels[name], {}).update(own)
    for (kind, _), one in objects().items():
        if kind == "Service":
            chosen = one["spec"]["selector"]["app.kubernetes.io/name"]
            assert {port["targetPort"] for port in one["spec"]["ports"]} <= set(ports[chosen])
            assert "type" not in one["spec"], "no service is open to the outside"
    gateway = load_gateway(HERE / "files" / "gateway.yaml")
    hosts = re.findall(r"//(?:\w+@)?([a-z]+)[:/]", str(gateway.model_dump()))
    services = {name for kind, name in objects() if kind == "Service"}
    assert {"postgres", "student"} <= set(hosts) & services

    policies = {
        name: one["spec"] for (kind, name), one in objects().items() if kind == "NetworkPolicy"
    }
    assert set(policies["nobody"]["policyTypes"]) == {"Ingress", "Egress"}
    assert "ingress" not in policies["nobody"]
    assert "egress" not in policies["nobody"]
    assert set(labels.values()) == set(policies) - {"nobody", "names"}
    for name in set(labels.values()):
        for rule in policies[name].get("ingress", []):
            assert {port["port"] for port in rule["ports"]} <= set(ports[name])
    admin = [
        rule
        for rule in policies["gateway"]["ingress"]
        if any(port["port"] == "admin" for port in rule["ports"])
    ]
    assert all(rule["from"] for rule in admin)
    for rule in itertools.chain(*(one.get("egress", []) for one in policies.values())):
        for to in rule.get("to", []):
            chosen = to.get("podSelector", {}).get("matchLabels", {}).get("app.kubernetes.io/name")
            if chosen is not None:
                assert {port["port"] for port in rule["ports"]} <= set(ports[chosen].values())
