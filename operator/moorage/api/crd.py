"""Custom resource definitions made from the types: `python -m moorage.api.crd DIR` writes one YAML file per kind.

pydantic writes JSON Schema 2020-12; a CRD takes a smaller language, the structural schema. The translation inlines
references, turns "X or null" into an optional X, refuses what has no counterpart and leaves out defaults that say
nothing (null, empty) and every default of a status, which only Moorage writes.
Source: https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from moorage.api.alias import ModelAlias
from moorage.api.common import Resource
from moorage.api.download import ModelDownload
from moorage.api.model import Model
from moorage.names import GROUP, VERSION

HEADER = "# Made by `make crds` from operator/moorage/api; change the types there.\n"

Schema = dict[str, Any]

# JSON Schema keys that a structural schema has too, with the same meaning.
_SAME = (
    *("type", "format", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems"),
    *("maxProperties", "required"),
)
_DROPPED = {"title", "description", "default", "properties", "items", "additionalProperties", "$defs"}


@dataclass(frozen=True)
class Column:
    """A column of `kubectl get`; a `wide` one shows with `-o wide` only."""

    name: str
    path: str
    type: str = "string"
    wide: bool = False

    def manifest(self) -> dict[str, Any]:
        """The column as an item of `additionalPrinterColumns`."""
        column: dict[str, Any] = {"name": self.name, "type": self.type, "jsonPath": self.path}
        return column | {"priority": 1} if self.wide else column


AGE = Column("Age", ".metadata.creationTimestamp", "date")


@dataclass(frozen=True)
class Kind:
    """What a CRD says beside its schema."""

    resource: type[Resource]
    plural: str
    short: str
    columns: tuple[Column, ...]
    selectable: tuple[str, ...] = ()
    scale: bool = False

    @property
    def name(self) -> str:
        """The kind: Model, ModelAlias, ModelDownload."""
        return self.resource.__name__


KINDS = (
    Kind(
        resource=Model,
        plural="models",
        short="mdl",
        scale=True,
        selectable=(".spec.engine", ".spec.purpose", ".status.phase", ".status.source.sizeClass"),
        columns=(
            Column("Phase", ".status.phase"),
            Column("Ready", ".status.summary.ready"),
            Column("Engine", ".status.engine.name"),
            Column("VRAM", ".status.summary.vram"),
            Column("Node", ".status.summary.node"),
            Column("Tok/s", ".status.summary.tokensPerSecond"),
            AGE,
            Column("Message", ".status.summary.message"),
            Column("TTFT", ".status.summary.ttft", wide=True),
            Column("Context", ".status.summary.context", wide=True),
            Column("Source", ".status.summary.source", wide=True),
            Column("Last used", ".status.usage.lastUsed", "date", wide=True),
            Column("Reason", ".status.summary.reason", wide=True),
        ),
    ),
    Kind(
        resource=ModelAlias,
        plural="modelaliases",
        short="mda",
        columns=(
            Column("Targets", ".status.summary.targets"),
            Column("Ready", ".status.summary.ready"),
            Column("Revision", ".status.revision", "integer"),
            AGE,
            Column("Message", ".status.summary.message"),
            Column("Defaults", ".status.summary.defaults", wide=True),
            Column("Requests", ".status.usage.requests", "integer", wide=True),
            Column("Last used", ".status.usage.lastUsed", "date", wide=True),
        ),
    ),
    Kind(
        resource=ModelDownload,
        plural="modeldownloads",
        short="mdd",
        selectable=(".spec.state", ".status.phase"),
        columns=(
            Column("Phase", ".status.phase"),
            Column("Progress", ".status.summary.progress"),
            Column("Done", ".status.summary.done"),
            Column("Speed", ".status.summary.speed"),
            Column("ETA", ".status.summary.eta"),
            Column("Verified", ".status.summary.verified"),
            AGE,
            Column("Message", ".status.summary.message"),
            Column("Revision", ".status.summary.revision", wide=True),
            Column("Files", ".status.summary.files", wide=True),
            Column("Retries", ".status.retries", "integer", wide=True),
            Column("Claim", ".status.claimName", wide=True),
        ),
    ),
)


def structural(schema: Schema, *, defaults: bool = True) -> Schema:
    """The structural schema of a pydantic JSON schema; `defaults=False` leaves all defaults out.

    Raises ValueError where the schema says something that a CRD cannot.
    """
    return _convert(schema, schema.get("$defs", {}), defaults, ())


def _convert(schema: Schema, definitions: Schema, defaults: bool, path: tuple[str, ...]) -> Schema:
    source = _inlined(schema, definitions, path)
    result: Schema = {key: source[key] for key in ("description",) if key in source}
    result |= {key: source[key] for key in _SAME if key in source}
    result |= {key: value for key, value in source.items() if key.startswith("x-kubernetes-")}
    unknown = set(source) - set(_SAME) - _DROPPED - set(result)
    if unknown:
        raise ValueError(f"{'.'.join(path) or 'schema'}: a CRD has no {', '.join(sorted(unknown))}")
    if defaults:
        result |= _default(source)
        result |= _explained(source, result)
    if source.get("type") == "integer":
        result.setdefault("format", "int64")
    if source.get("type") == "array":
        result.setdefault("x-kubernetes-list-type", "atomic")
        result["items"] = _convert(source["items"], definitions, defaults, (*path, "items"))
    if isinstance(source.get("additionalProperties"), dict):
        result["additionalProperties"] = _convert(source["additionalProperties"], definitions, defaults, (*path, "*"))
    if "properties" in source:
        result["properties"] = {
            name: _convert(child, definitions, defaults, (*path, name)) for name, child in source["properties"].items()
        }
    return result


def _inlined(schema: Schema, definitions: Schema, path: tuple[str, ...]) -> Schema:
    """`schema` with its reference and its "or null" resolved; what stands beside them wins (a description)."""
    if len(path) > 20:
        raise ValueError(f"{'.'.join(path)}: a CRD cannot be recursive")
    if "$ref" in schema:
        target = definitions[schema["$ref"].removeprefix("#/$defs/")]
        return _inlined(_beside(target, schema, "$ref"), definitions, path)
    if "anyOf" in schema:
        options = [option for option in schema["anyOf"] if option != {"type": "null"}]
        if len(options) != 1:
            raise ValueError(f"{'.'.join(path)}: a CRD has no choice of types")
        return _inlined(_beside(options[0], schema, "anyOf"), definitions, path)
    return schema


def _beside(target: Schema, schema: Schema, key: str) -> Schema:
    """`target` with the siblings of `key` over it; CEL rules of both count."""
    siblings = {name: value for name, value in schema.items() if name != key}
    rules = [*target.get("x-kubernetes-validations", []), *siblings.get("x-kubernetes-validations", [])]
    return {**target, **siblings} | ({"x-kubernetes-validations": rules} if rules else {})


def _default(source: Schema) -> Schema:
    """The default to write, nothing where it says nothing.

    An object's is written in full: the API server checks it against the CEL rules before it fills the fields' own in.
    """
    value = source.get("default")
    if isinstance(value, dict):
        value = {name: field for name, field in value.items() if field not in (None, [], {})}
    return {} if value in (None, [], {}) else {"default": value}


def _explained(source: Schema, result: Schema) -> Schema:
    """The description with the default and the range behind it, because `kubectl explain` shows neither."""
    if "description" not in source or source.get("type") == "object":
        return {}
    notes = []
    if "default" in result:
        notes.append(f"Default: {json.dumps(result['default']).replace(chr(34), '')}.")
    if "minimum" in source and "maximum" in source:
        notes.append(f"From {source['minimum']} to {source['maximum']}.")
    return {"description": " ".join([source["description"], *notes])}


def _object_schema(kind: Kind) -> Schema:
    fields = kind.resource.model_fields
    spec, status = fields["spec"], fields["status"]
    assert spec.annotation is not None and status.annotation is not None
    schema: Schema = {
        "type": "object",
        "description": kind.resource.__doc__,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"{GROUP}/{VERSION}", "maxLength": 64},
            "kind": {"type": "string", "description": kind.name, "maxLength": 64},
            "metadata": {"type": "object"},
            "spec": structural(spec.annotation.model_json_schema()) | {"description": spec.description},
            "status": structural(status.annotation.model_json_schema(), defaults=False)
            | {"description": status.description},
        },
    }
    rules = [rule.manifest() for rule in kind.resource.rules]
    return schema | ({"x-kubernetes-validations": rules} if rules else {})


def crd(kind: Kind) -> dict[str, Any]:
    """The CustomResourceDefinition of `kind`."""
    subresources: dict[str, Any] = {"status": {}}
    if kind.scale:
        subresources["scale"] = {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        }
    version: dict[str, Any] = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": subresources,
        "additionalPrinterColumns": [column.manifest() for column in kind.columns],
    }
    if kind.selectable:
        version["selectableFields"] = [{"jsonPath": path} for path in kind.selectable]
    version["schema"] = {"openAPIV3Schema": _object_schema(kind)}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                "shortNames": [kind.short],
                "categories": ["moorage"],
            },
            "versions": [version],
        },
    }


class _Dumper(yaml.SafeDumper):
    """Writes repeated values out instead of as YAML anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def crd_files() -> dict[str, str]:
    """File name -> YAML text of all CRDs."""
    return {
        f"{GROUP}_{kind.plural}.yaml": HEADER
        + yaml.dump(crd(kind), Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)
        for kind in KINDS
    }


def main() -> None:
    """Write the CRDs into the folder named on the command line."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in crd_files().items():
        (folder / name).write_text(text)
        print(f"crds: wrote {folder / name}")


if __name__ == "__main__":
    main()
