"""Helm for tests: renders the chart, and says what Helm says where it refuses."""

import functools
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from e2e.cluster import Cluster

CHART = Path(__file__).resolve().parents[2] / "charts/moorage"
NAMESPACE = "moorage-system"


class HelmError(Exception):
    """Helm refused; its message is the exception's."""


@functools.cache
def binary() -> Path:
    """The helm of the cluster kit, which is built where it is missing."""
    return Cluster("any", print).binary("helm")


def helm(*args: str, values: dict[str, Any] | None = None, kubeconfig: Path | None = None) -> str:
    """What `helm ARGS` prints, with `values` as a values file; HelmError where it fails."""
    command = [str(binary()), *(["--kubeconfig", str(kubeconfig)] if kubeconfig else []), *args]
    if values is not None:
        command += ["--values", "-"]
    text = yaml.safe_dump(values) if values is not None else None
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise HelmError(done.stderr.strip())
    return done.stdout


def template(values: dict[str, Any] | None = None, *, release: str = "moorage", namespace: str = NAMESPACE) -> str:
    """The rendered chart as text; equal questions are asked once."""
    return _template(json.dumps(values or {}, sort_keys=True), release, namespace)


@functools.cache
def _template(values: str, release: str, namespace: str) -> str:
    text = helm("template", release, str(CHART), "--namespace", namespace, values=json.loads(values))
    return re.sub(r'(?m)^  token: ".{64}"$', '  token: "cmFuZG9t"', text)  # made anew by each rendering


def objects(values: dict[str, Any] | None = None, **options: str) -> list[dict[str, Any]]:
    """The rendered chart as objects."""
    return [obj for obj in yaml.safe_load_all(template(values, **options)) if obj]


def only(found: list[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    """The one object of `kind` (whose name ends with `name`)."""
    matching = [obj for obj in found if obj["kind"] == kind and obj["metadata"]["name"].endswith(name)]
    assert len(matching) == 1, f"{len(matching)} objects of kind {kind} named {name or 'anything'}"
    return matching[0]


def config(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The operator's settings file in a rendered chart."""
    settings: dict[str, Any] = yaml.safe_load(only(found, "ConfigMap", "-operator")["data"]["config.yaml"])
    return settings
