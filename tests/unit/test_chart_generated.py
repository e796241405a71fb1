"""The generated parts of the chart: as their sources say, and rendered whole."""

from itertools import chain

import pytest
import yaml

from charts.generate import CHART, ROLES, files
from moorage import __version__, rbac
from moorage.api.crd import KINDS, crd_files
from moorage.kube import resources
from tests.support import helm

MADE = files()


@pytest.mark.parametrize("name", MADE)
def test_committed_parts_are_what_their_sources_say(name):
    assert (CHART / name).read_text() == MADE[name], "run `make chart`"


def test_nothing_else_lies_beside_the_generated_files():
    found = {str(path.relative_to(CHART)) for path in (CHART / "files").rglob("*") if path.is_file()}
    assert found == set(MADE) - {"Chart.yaml"}


def test_the_chart_has_the_version_of_the_package():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)


@pytest.mark.parametrize("role", ROLES)
def test_rendered_roles_have_exactly_the_rights_of_the_table(role):
    if role == "gateway-own":
        rendered = helm.only(helm.objects({"gateway": {"requireKeys": True}}), "Role", "-gateway")["rules"]
    else:
        rendered = helm.only(helm.objects(), "ClusterRole", role)["rules"]
    table = [{"apiGroups": [r.group], "resources": [*r.resources], "verbs": [*r.verbs]} for r in ROLES[role]]
    assert rendered == table


def test_the_crds_are_rendered_as_they_are_with_labels_and_the_keep_policy():
    rendered = {obj["metadata"]["name"]: obj for obj in helm.objects() if obj["kind"] == "CustomResourceDefinition"}
    originals = [yaml.safe_load(text) for text in crd_files().values()]
    assert set(rendered) == {crd["metadata"]["name"] for crd in originals}
    for original in originals:
        found = rendered[original["metadata"]["name"]]
        assert found["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        assert found["metadata"].pop("labels")["app.kubernetes.io/managed-by"] == "Helm"
        assert found == original


def test_crds_can_be_left_to_uninstall_and_left_out():
    loose = helm.only(helm.objects({"crds": {"keep": False}}), "CustomResourceDefinition", "models.moorage.dev")
    assert "annotations" not in loose["metadata"]
    without = helm.objects({"crds": {"enabled": False}})
    assert without
    assert all(obj["kind"] != "CustomResourceDefinition" for obj in without)


def test_every_right_names_resources_that_the_client_knows():
    """A misspelt resource would be a right that never works, and no API server complains about it."""
    known = {(resource.group, resource.plural) for resource in resources.RESOURCES}
    rights = chain(rbac.OPERATOR, rbac.GATEWAY, rbac.GATEWAY_OWN, rbac.EDITOR, rbac.VIEWER)
    named = {(right.group, name.partition("/")[0]) for right in rights for name in right.resources}
    assert named <= known
    assert {kind.plural for kind in KINDS} == set(rbac.KINDS)


def test_no_right_is_unbounded():
    for right in chain(rbac.OPERATOR, rbac.GATEWAY, rbac.GATEWAY_OWN, rbac.EDITOR, rbac.VIEWER):
        assert "*" not in (right.group, *right.resources, *right.verbs), right
        assert not {"bind", "escalate", "impersonate"} & set(right.verbs), right
        assert len(right.why) > 10, right


def test_the_gateway_only_reads():
    assert {verb for right in (*rbac.GATEWAY, *rbac.GATEWAY_OWN) for verb in right.verbs} == {"list", "watch"}


def test_the_gateway_reads_secrets_only_where_keys_are_needed_and_only_its_own():
    assert [right.resources for right in rbac.GATEWAY_OWN] == [("secrets",)]
    assert not any("secrets" in right.resources for right in rbac.GATEWAY)
    assert not any(obj["kind"] in ("Role", "RoleBinding") for obj in helm.objects())


def test_secrets_are_only_read_by_name():
    assert [r.verbs for r in rbac.OPERATOR if "secrets" in r.resources] == [("get",)]
