"""Writes the generated parts of the chart: `python -m charts.generate` (or `make chart`).

- `files/crds/`: copies of the CRDs, which the chart renders with labels and the keep policy. Read as files and never
  parsed as templates, they may contain any characters.
- `files/rbac/`: the rules of `moorage.rbac`, each with its reason as a comment.
- `files/grafana/`: the dashboard of `charts.dashboard`.
- `files/defaults.yaml`: values.yaml without its words, for releases that are upgraded with an older chart's values.
- the versions in `Chart.yaml`.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import yaml

from charts.dashboard import dashboard
from moorage import __version__, rbac
from moorage.api.crd import crd_files

CHART = Path(__file__).resolve().parent / "moorage"
ROLES = {
    "operator": rbac.OPERATOR,
    "gateway": rbac.GATEWAY,
    "gateway-own": rbac.GATEWAY_OWN,
    "viewer": rbac.VIEWER,
    "editor": (*rbac.VIEWER, *rbac.EDITOR),
}
HEADER = "# Made by `make chart` from operator/moorage/rbac.py.\n"
DEFAULTS_HEADER = "# Made by `make chart` from values.yaml, which templates cannot read.\n"


def rules(rights: Iterable[rbac.Right]) -> str:
    """`rights` as the YAML list under `rules:` of a ClusterRole."""
    return "".join(
        f"# {right.why}\n"
        f'- apiGroups: ["{right.group}"]\n'
        f"  resources: [{', '.join(right.resources)}]\n"
        f"  verbs: [{', '.join(right.verbs)}]\n"
        for right in rights
    )


def files() -> dict[str, str]:
    """Path in the chart -> text of everything that is generated."""
    made = {f"files/crds/{name}": text for name, text in crd_files().items()}
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    made["files/defaults.yaml"] = DEFAULTS_HEADER + yaml.safe_dump(defaults, sort_keys=False)
    made |= {f"files/rbac/{role}.yaml": HEADER + rules(rights) for role, rights in ROLES.items()}
    made["files/grafana/moorage.json"] = dashboard()
    chart = (CHART / "Chart.yaml").read_text()
    chart = re.sub(r"(?m)^version: .*$", f"version: {__version__}", chart)
    made["Chart.yaml"] = re.sub(r"(?m)^appVersion: .*$", f'appVersion: "{__version__}"', chart)
    return made


def main() -> None:
    """Write what changed and say so."""
    for name, text in files().items():
        path = CHART / name
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            print(f"chart: wrote {path.relative_to(CHART.parents[1])}")


if __name__ == "__main__":
    main()
