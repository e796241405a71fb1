import pytest

from moorage.kube.resources import (
    CLAIMS,
    DEPLOYMENTS,
    MODELS,
    NODES,
    PODS,
    RESOURCES,
    Resource,
    resource_of,
)


@pytest.mark.parametrize(
    ("resource", "parts", "path"),
    [
        (PODS, (), "/api/v1/pods"),
        (PODS, ("team-a",), "/api/v1/namespaces/team-a/pods"),
        (PODS, ("team-a", "p-0", "log"), "/api/v1/namespaces/team-a/pods/p-0/log"),
        (DEPLOYMENTS, ("team-a", "d"), "/apis/apps/v1/namespaces/team-a/deployments/d"),
        (
            MODELS,
            ("team-a", "llama3.2", "status"),
            "/apis/moorage.dev/v1alpha1/namespaces/team-a/models/llama3.2/status",
        ),
        (NODES, (None, "n-1"), "/api/v1/nodes/n-1"),
        (NODES, ("ignored", "n-1"), "/api/v1/nodes/n-1"),
    ],
)
def test_paths(resource: Resource, parts: tuple[str | None, ...], path: str):
    assert resource.path(*parts) == path


@pytest.mark.parametrize("name", ["..", ".", ""])
def test_a_name_cannot_climb_out_of_its_collection(name: str):
    with pytest.raises(ValueError, match="not a name"):
        PODS.path("team-a", name)


def test_slashes_and_queries_in_a_name_are_escaped():
    assert PODS.path("team-a", "../../secrets?x=y").endswith("/pods/..%2F..%2Fsecrets%3Fx%3Dy")


def test_a_namespaced_object_needs_a_namespace():
    with pytest.raises(ValueError, match="needs a namespace"):
        PODS.path(None, "p-0")


def test_resource_of_knows_every_resource():
    for resource in RESOURCES:
        assert resource_of({"apiVersion": resource.api_version, "kind": resource.kind}) is resource
    assert resource_of({"apiVersion": "v1", "kind": "PersistentVolumeClaim"}) is CLAIMS


def test_resource_of_names_what_it_does_not_know():
    with pytest.raises(ValueError, match=r"'example\.org/v1', kind 'Thing'"):
        resource_of({"apiVersion": "example.org/v1", "kind": "Thing"})
