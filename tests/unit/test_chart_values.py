"""values.yaml and values.schema.json: the same values, each explained, each with an effect; wrong ones are refused."""

import copy
import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import helm

SCHEMA: dict[str, Any] = json.loads((helm.CHART / "values.schema.json").read_text())
TEXT = (helm.CHART / "values.yaml").read_text()
VALUES: dict[str, Any] = yaml.safe_load(TEXT)
FULL_FILE = Path(__file__).resolve().parents[1] / "golden/chart/full.values.yaml"
FULL: dict[str, Any] = yaml.safe_load(FULL_FILE.read_text())


def properties(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every property of the schema down to what values.yaml calls a value, with its dotted path."""
    for name, child in schema.get("properties", {}).items():
        yield f"{path}{name}", child
        yield from properties(child, f"{path}{name}.")


PROPERTIES = dict(properties(SCHEMA))
KUBERNETES = {f"{pod}.{field}" for pod in ("operator", "gateway") for field in ("resources", "affinity")}
KUBERNETES.add("agent.resources")
FIELDS_OF_KUBERNETES = tuple(f"{path}." for path in KUBERNETES)
SECTIONS = {path for path, schema in PROPERTIES.items() if "properties" in schema} - KUBERNETES
LEAVES = [p for p in PROPERTIES if p not in SECTIONS and p != "global" and not p.startswith(FIELDS_OF_KUBERNETES)]


def at(values: dict[str, Any], path: str) -> Any:
    for step in path.split("."):
        values = values[step]
    return values


def changed(values: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    result = copy.deepcopy(values)
    *steps, last = path.split(".")
    (at(result, ".".join(steps)) if steps else result)[last] = value
    return result


def test_schema_and_values_name_the_same_things():
    in_values = {path for path in LEAVES if not _missing(path)}
    assert in_values == set(LEAVES), "a value without a default"
    helm.template(VALUES)  # and none that the schema does not know


def _missing(path: str) -> bool:
    try:
        at(VALUES, path)
    except KeyError:
        return True
    return False


def test_every_value_is_explained():
    def sentence(schema: dict[str, Any]) -> bool:
        return bool(re.fullmatch(r"[A-Z].+\.", schema.get("description", "")))

    explained = SECTIONS | set(LEAVES) | {"global"}
    assert [path for path in explained if not sentence(PROPERTIES[path])] == []


def test_every_object_of_the_schema_is_closed():
    """What the schema does not close is refused by nobody; objects of Kubernetes' own kinds are closed there."""
    kubernetes = re.compile(r"(valueFrom|Affinity|Selector|ipBlock|global)$")

    def open_ones(schema: dict[str, Any], path: str) -> Iterator[str]:
        if schema.get("type") == "object" and "additionalProperties" not in schema and not kubernetes.search(path):
            yield path
        for name, child in schema.get("properties", {}).items():
            yield from open_ones(child, f"{path}.{name}")
        if "items" in schema:
            yield from open_ones(schema["items"], f"{path}[]")

    found = list(open_ones(SCHEMA, ""))
    found += [p for name, schema in SCHEMA["definitions"].items() for p in open_ones(schema, name)]
    assert found == []


@pytest.mark.parametrize("path", LEAVES)
def test_every_value_has_an_effect(path):
    """From the rendering with all values set, each one put back to its default makes a difference."""
    default, full = at(VALUES, path), at(FULL, path)
    if path in ("images.registry", "images.llamaCpp", "crds.enabled", "gateway.enabled", "fullnameOverride"):
        # these show only where others are at their defaults
        other = {"crds.enabled": False, "gateway.enabled": False, "images.llamaCpp": "example.com/llama:1"}.get(
            path, full
        )
        assert helm.template(VALUES) != helm.template(changed(VALUES, path, other))
        return
    assert default != full, "full.values.yaml leaves it at its default"
    base = changed(FULL, "fullnameOverride", "") if path == "nameOverride" else FULL
    assert helm.template(base) != helm.template(changed(base, path, default))


def lacking(path: str) -> dict[str, Any]:
    """Values that take the default at `path` away, or with `.*` at its end each one below it."""
    *steps, last = path.split(".")
    missing: dict[str, Any] = dict.fromkeys(at(VALUES, ".".join(steps))) if last == "*" else {last: None}
    for step in reversed(steps):
        missing = {step: missing}
    return missing


@pytest.mark.parametrize("path", sorted([*VALUES, *(f"{section}.*" for section in SECTIONS)]))
def test_values_of_an_older_release_may_lack_any_of_them(path: str):
    """`helm upgrade --reuse-values` keeps what the older chart had, and takes no default of the newer one."""
    assert helm.template(lacking(path)) == helm.template()
    helm.helm("install", "moorage", str(helm.CHART), "--dry-run=client", values=lacking(path))  # with its notes


def test_a_key_of_a_users_own_map_may_be_taken_out():
    values = {"agent": {"enabled": True, "nodeSelector": {"nvidia.com/gpu.present": None}}}
    assert "nodeSelector" not in helm.only(helm.objects(values), "DaemonSet")["spec"]["template"]["spec"]
    values = {"operator": {"resources": {"limits": None}}}
    pod = helm.only(helm.objects(values), "Deployment", "-operator")["spec"]["template"]["spec"]
    assert list(pod["containers"][0]["resources"]) == ["requests"]


def test_every_template_begins_with_the_defaults():
    begin = re.compile(r'\{\{- include "moorage.defaults" \. -?\}\}')
    templates = [path for path in (helm.CHART / "templates").iterdir() if path.name != "_helpers.tpl"]
    assert [path.name for path in templates if not begin.match(path.read_text())] == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"image": {"tag": "1"}}, "additional properties 'image' not allowed"),
        ({"images": {"mooorage": "x:1"}}, "at '/images': additional properties 'mooorage' not allowed"),
        ({"images": {"moorage": "example.com/moorage"}}, "at '/images/moorage': 'example.com/moorage' does not match"),
        ({"images": {"moorage": "example.com:5000/moorage"}}, "at '/images/moorage'"),
        ({"images": {"moorage": "example.com/moorage@sha256:abc"}}, "at '/images/moorage'"),
        ({"images": {"registry": ""}}, "at '/images/registry'"),
        ({"images": {"registry": "example.com/"}}, "at '/images/registry'"),
        ({"images": {"pullSecrets": [{"name": "pull"}]}}, "at '/images/pullSecrets/0': got object, want string"),
        ({"images": {"pullSecrets": ["Pull"]}}, "at '/images/pullSecrets/0': 'Pull' does not match pattern"),
        ({"sources": {"huggingFaceEndpoint": "hub:8090"}}, "'hub:8090' does not match pattern '^https?://"),
        ({"sources": {"allowPrivateHosts": "yes"}}, "at '/sources/allowPrivateHosts': got string, want boolean"),
        ({"gpus": {"nodePools": [{"name": "a", "gpus": 1}]}}, "at '/gpus/nodePools/0': missing propert"),
        ({"gpus": {"products": {"l4": "24 GB"}}}, "at '/gpus/products/l4': '24 GB' does not match pattern"),
        ({"gpus": {"nodeDeadline": "soon"}}, "at '/gpus/nodeDeadline': 'soon' does not match pattern"),
        ({"operator": {"workers": 0}}, "at '/operator/workers': minimum: got 0, want 1"),
        ({"operator": {"workers": 257}}, "at '/operator/workers': maximum: got 257, want 256"),
        ({"operator": {"resyncSeconds": 29}}, "at '/operator/resyncSeconds': minimum: got 29, want 30"),
        ({"operator": {"replicas": 2}}, "additional properties 'replicas' not allowed"),
        ({"operator": {"extraEnv": [{"value": "x"}]}}, "at '/operator/extraEnv/0': missing property 'name'"),
        ({"operator": {"extraEnv": {"A": "b"}}}, "at '/operator/extraEnv': got object, want array"),
        ({"operator": {"podAnnotations": {"a": True}}}, "at '/operator/podAnnotations/a': got boolean, want string"),
        ({"operator": {"tolerations": [{"effect": "Never"}]}}, "at '/operator/tolerations/0/effect'"),
        ({"operator": {"resources": {"request": {}}}}, "additional properties 'request' not allowed"),
        ({"gateway": {"replicas": 0}}, "at '/gateway/replicas': minimum: got 0, want 1"),
        ({"gateway": {"gracePeriodSeconds": 5}}, "at '/gateway/gracePeriodSeconds': minimum: got 5, want 15"),
        ({"gateway": {"defaultNamespace": "Team A"}}, "at '/gateway/defaultNamespace'"),
        ({"gateway": {"service": {"type": "LoadBalancer"}}}, "additional properties 'service' not allowed"),
        ({"agent": {"kubeletFolder": "kubelet"}}, "at '/agent/kubeletFolder'"),
        ({"agent": {"extraVolumes": [{}]}}, "at '/agent/extraVolumes/0': missing property 'name'"),
        ({"metrics": {"serviceMonitor": {"interval": "30"}}}, "at '/metrics/serviceMonitor/interval'"),
        ({"networkPolicy": {"namespaces": "default"}}, "at '/networkPolicy/namespaces': got string, want array"),
        ({"networkPolicy": {"clientsFrom": [{}]}}, "at '/networkPolicy/clientsFrom/0': minProperties"),
        ({"networkPolicy": {"clientsFrom": [{"pods": {}}]}}, "additional properties 'pods' not allowed"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)
def test_wrong_values_are_refused_by_name(values, words):
    with pytest.raises(helm.HelmError) as error:
        helm.template(values)
    assert words in str(error.value)


@pytest.mark.parametrize(
    "image",
    [
        "moorage:dev",
        "localhost/moorage:a",
        "example.com:5000/x/moorage:1.0.0-rc.1",
        f"example.com/moorage@sha256:{'0' * 64}",
        f"example.com/moorage:1@sha256:{'0' * 64}",
    ],
)
def test_ordinary_image_names_are_taken(image):
    container = helm.only(helm.objects({"images": {"moorage": image}}), "Deployment", "-operator")["spec"]["template"][
        "spec"
    ]
    assert container["containers"][0]["image"] == image


def test_the_chart_may_be_part_of_another_one():
    helm.template({"global": {"anything": 1}})


def test_every_default_has_a_comment():
    """values.yaml is what people read: a comment stands above every key; what is said of a pod is said once."""
    keys = [(above, re.match(r" *([A-Za-z]+): ", line)) for above, line in pairwise(TEXT.splitlines())]
    bare = {key[1] for above, key in keys if key and not above.lstrip().startswith("#")}
    assert bare == {"requests", "limits", "nodeSelector", "tolerations", "affinity", "fullnameOverride"}
