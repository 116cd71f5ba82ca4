"""deploy/kubernetes and deploy/kserve against the published schemas, the images, and a running server."""

from __future__ import annotations

import argparse
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from edgekit.cli import serve
from tests.data import ROOT
from tests.deploy.images import stages_of
from tests.serve.running import Client, served
from tests.tiny import tiny_package

yaml = pytest.importorskip("yaml", reason="needs PyYAML")
BASE, GPU = ROOT / "deploy/kubernetes/base", ROOT / "deploy/kubernetes/gpu"
RUNTIME, SERVICE = ROOT / "deploy/kserve/runtime.yaml", ROOT / "deploy/kserve/inferenceservice.yaml"
RELEASES = ("1.30", "1.34")

# What KServe 0.21's own models of its resources take (spec of a ServingRuntime, of a predictor, of its model).
RUNTIME_FIELDS = {
    *("affinity", "annotations", "builtInAdapter", "containers", "disabled", "grpcDataEndpoint", "grpcEndpoint"),
    *("hostIPC", "httpDataEndpoint", "imagePullSecrets", "labels", "multiModel", "nodeSelector", "protocolVersions"),
    *("replicas", "resourceClaims", "schedulerName", "storageHelper", "supportedModelFormats", "tolerations"),
    *("volumes", "workerSpec"),
}
FORMAT_FIELDS = {"autoSelect", "name", "priority", "version"}
SCALING_FIELDS = {
    *("autoScaling", "batcher", "canaryTrafficPercent", "containerConcurrency", "deploymentStrategy", "logger"),
    *("maxReplicas", "minReplicas", "model", "scaleMetric", "scaleMetricType", "scaleTarget", "timeout"),
}
MODEL_FIELDS = {"modelFormat", "protocolVersion", "runtime", "runtimeVersion", "storage", "storageUri"}


def documents(path: Path) -> list[dict[str, Any]]:
    return [d for d in yaml.safe_load_all(path.read_text()) if d]


def of_kind(found: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (one,) = (d for d in found if d["kind"] == kind)
    return one


def built(folder: Path) -> list[dict[str, Any]]:
    """What `kubectl apply -k` would send."""
    tool = shutil.which("kubectl")
    if tool is None:
        pytest.skip("needs kubectl")
    done = subprocess.run([tool, "kustomize", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [d for d in yaml.safe_load_all(done.stdout) if d]


def check(document: dict[str, Any]) -> None:
    """Against the schemas of Kubernetes: fields that they do not know are errors."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    for release in RELEASES:
        kubernetes_validate.validate(document, release, strict=True)


def pod_of(containers: list[dict[str, Any]], volumes: list[dict[str, Any]]) -> dict[str, Any]:
    spec = {"containers": containers, "volumes": volumes}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "edgekit"}, "spec": spec}


def test_the_plain_file_fits_the_schemas_of_kubernetes() -> None:
    for document in documents(BASE / "edgekit.yaml"):
        check(document)


@pytest.mark.parametrize("folder", [BASE, GPU], ids=lambda p: p.name)
def test_what_kustomize_makes_of_it_fits_too(folder: Path) -> None:
    for document in built(folder):
        check(document)


def test_a_field_that_kubernetes_does_not_know_is_found() -> None:
    deployment = of_kind(documents(BASE / "edgekit.yaml"), "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(Exception, match="readynessProbe"):
        check(deployment)


def test_gpus_are_asked_for_and_not_shared_between_old_and_new() -> None:
    spec = of_kind(built(GPU), "Deployment")["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["readinessProbe"], "the patch adds to the container"
    assert spec["strategy"]["rollingUpdate"]["maxSurge"] == 0
    assert (
        container["image"] != of_kind(built(BASE), "Deployment")["spec"]["template"]["spec"]["containers"][0]["image"]
    )


def runtime_pod() -> dict[str, Any]:
    spec = of_kind(documents(RUNTIME), "ServingRuntime")["spec"]
    return pod_of(spec["containers"], spec["volumes"])


def deployment_pod() -> dict[str, Any]:
    return dict(of_kind(documents(BASE / "edgekit.yaml"), "Deployment")["spec"]["template"])


PODS = pytest.mark.parametrize("pod", [deployment_pod(), runtime_pod()], ids=["kubernetes", "kserve"])


@PODS
def test_a_pod_may_do_nothing_but_serve(pod: dict[str, Any]) -> None:
    (container,) = pod["spec"]["containers"]
    security = {**pod["spec"].get("securityContext", {}), **container["securityContext"]}
    uid = int(stages_of("Dockerfile")[-1].last("USER"))
    assert (security["runAsNonRoot"], security["runAsUser"]) == (True, uid)
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    mounts = {m["mountPath"]: m for m in container["volumeMounts"]}
    volumes = {v["name"]: v for v in pod["spec"]["volumes"]}
    home = next(w for w in stages_of("Dockerfile")[-1].last("ENV").split() if w.startswith("HOME=")).removeprefix(
        "HOME="
    )
    for path in (home, "/tmp"):
        assert volumes[mounts[path]["name"]]["emptyDir"]["sizeLimit"], f"{path} must be writable, and bounded"
    assert {m["name"] for m in mounts.values()} == set(volumes)


@PODS
def test_probes_ports_and_options_are_the_servers(pod: dict[str, Any], tmp_path: Path) -> None:
    (container,) = pod["spec"]["containers"]
    assert container["args"][0] == "serve"
    parser = argparse.ArgumentParser(exit_on_error=False)
    serve.add_arguments(parser)
    given = parser.parse_args(container["args"][1:])
    named = {p["name"]: p["containerPort"] for p in container["ports"]}
    assert set(named.values()) <= {given.port, given.grpc_port}
    tiny_package(tmp_path / "models.edge")
    with served(tmp_path / "models.edge", options=("--grpc-port", "off")) as running, Client(running.url) as client:
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            question = container[probe]["httpGet"]
            assert named.get(question["port"], question["port"]) == given.port
            assert client.ask("GET", question["path"]).status == 200
        annotations = pod["metadata"].get("annotations") or documents(RUNTIME)[0]["spec"]["annotations"]
        (path,) = (v for k, v in annotations.items() if k.endswith("/path"))
        (port,) = (v for k, v in annotations.items() if k.endswith("/port"))
        assert client.ask("GET", path).body.startswith(b"# ")
        assert port == str(given.port)
    assert container["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/v2/health/live", "heat is no reason to be killed"


def test_the_service_leads_to_the_pods_and_their_ends_are_waited_for() -> None:
    found = documents(BASE / "edgekit.yaml")
    deployment, service = of_kind(found, "Deployment")["spec"], of_kind(found, "Service")["spec"]
    labels, pod = deployment["template"]["metadata"]["labels"], deployment["template"]["spec"]
    for selector in (service["selector"], deployment["selector"]["matchLabels"]):
        assert selector.items() <= labels.items()
    assert of_kind(found, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"].items() <= labels.items()
    ports = {p["name"]: p["containerPort"] for p in pod["containers"][0]["ports"]}
    assert {p["targetPort"]: p["port"] for p in service["ports"]} == ports
    claims = {v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v}
    assert claims == {of_kind(found, "PersistentVolumeClaim")["metadata"]["name"]}
    pause = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > pause + serve_drain_s()


def serve_drain_s() -> float:
    from edgekit.serve.server import DRAIN_S

    return DRAIN_S


def test_the_runtime_is_what_kserve_takes() -> None:
    (runtime,) = documents(RUNTIME)
    assert (runtime["apiVersion"], runtime["kind"]) == ("serving.kserve.io/v1alpha1", "ServingRuntime")
    spec = runtime["spec"]
    assert set(spec) <= RUNTIME_FIELDS
    (container,) = spec["containers"]
    assert container["name"] == "kserve-container"
    assert "/mnt/models" in container["args"]
    assert all(set(f) <= FORMAT_FIELDS and f["name"] for f in spec["supportedModelFormats"])
    assert set(spec["protocolVersions"]) == {"v2", "grpc-v2"}
    check(runtime_pod())


def test_the_inference_service_names_the_runtime_and_a_package() -> None:
    (service,), (runtime,) = documents(SERVICE), documents(RUNTIME)
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert set(service["spec"]) == {"predictor"}
    predictor = dict(service["spec"]["predictor"])
    assert set(predictor) <= SCALING_FIELDS
    model = dict(predictor.pop("model"))
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    form = model["modelFormat"]
    assert any(
        f["name"] == form["name"] and f["version"] == form["version"] for f in runtime["spec"]["supportedModelFormats"]
    )
    assert model["storageUri"].startswith("s3://")
    rest = {k: v for k, v in model.items() if k not in MODEL_FIELDS}
    check(pod_of([{"name": "kserve-container", **rest}], []))


def test_a_package_where_kserve_puts_it_is_served(tmp_path: Path) -> None:
    """The folder's content lies in /mnt/models, without the name of the package."""
    tiny_package(tmp_path / "tiny.edge").path.rename(tmp_path / "models")
    with served(tmp_path / "models") as running:
        assert [m["name"] for m in running.models] == ["tiny"]
