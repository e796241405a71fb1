"""Parts of core/v1 that a Model passes on to its pods, with the schema of their well-known fields.

They stay plain dicts: Moorage does not decide by them, and kube-apiserver validates them in the pod.
"""

from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from moorage.api.managed_args import ENV_RULES

_NAME = {"type": "string", "maxLength": 253}
_OPTIONAL = {"type": "boolean", "description": "Whether it may be missing."}


def _key_of(what: str) -> dict[str, Any]:
    return {
        "type": "object",
        "description": f"A key of a {what} of the same namespace.",
        "required": ["key", "name"],
        "properties": {
            "name": {**_NAME, "minLength": 1, "description": f"Name of the {what}."},
            "key": {**_NAME, "minLength": 1, "description": f"Key in the {what}."},
            "optional": _OPTIONAL,
        },
    }


def _all_of(what: str) -> dict[str, Any]:
    return {
        "type": "object",
        "description": f"All keys of a {what} of the same namespace.",
        "required": ["name"],
        "properties": {
            "name": {**_NAME, "minLength": 1, "description": f"Name of the {what}."},
            "optional": _OPTIONAL,
        },
    }


_FIELD_REF = {
    "type": "object",
    "description": "A field of the pod, such as metadata.name or status.hostIP.",
    "required": ["fieldPath"],
    "properties": {
        "apiVersion": {**_NAME, "description": "Version of the path; v1."},
        "fieldPath": {**_NAME, "description": "Path of the field."},
    },
}

_RESOURCE_FIELD_REF = {
    "type": "object",
    "description": "A request or limit of the container, such as limits.memory.",
    "required": ["resource"],
    "properties": {
        "containerName": {**_NAME, "description": "Name of the container."},
        "resource": {**_NAME, "description": "Resource to read, such as limits.memory."},
        "divisor": {
            "x-kubernetes-int-or-string": True,
            "maxLength": 24,
            "description": "Unit of the value, such as 1Mi.",
        },
    },
}

_ENV = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {
            **_NAME,
            "minLength": 1,
            "description": "Name of the variable. One by which Moorage's own arguments could be set again is refused.",
            "x-kubernetes-validations": [rule.manifest() for rule in ENV_RULES],
        },
        "value": {"type": "string", "maxLength": 8192, "description": "Value of the variable."},
        "valueFrom": {
            "type": "object",
            "description": "Where the value comes from instead.",
            "properties": {
                "configMapKeyRef": _key_of("ConfigMap"),
                "secretKeyRef": _key_of("Secret"),
                "fieldRef": _FIELD_REF,
                "resourceFieldRef": _RESOURCE_FIELD_REF,
            },
        },
    },
}

_ENV_FROM = {
    "type": "object",
    "properties": {
        "prefix": {**_NAME, "description": "Put before each name."},
        "configMapRef": _all_of("ConfigMap"),
        "secretRef": _all_of("Secret"),
    },
}

_TOLERATION = {
    "type": "object",
    "properties": {
        "key": {"type": "string", "maxLength": 317, "description": "Key of the taint; absent with Exists: every key."},
        "operator": {"type": "string", "enum": ["Exists", "Equal"], "description": "Exists or Equal; absent: Equal."},
        "value": {"type": "string", "maxLength": 63, "description": "Value of the taint, with Equal."},
        "effect": {
            "type": "string",
            "enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"],
            "description": "Effect of the taint; absent: every effect.",
        },
        "tolerationSeconds": {
            "type": "integer",
            "format": "int64",
            "description": "How many seconds a NoExecute taint is tolerated; absent: for ever.",
        },
    },
}

_AMOUNTS = {
    "type": "object",
    "maxProperties": 16,
    "additionalProperties": {
        "x-kubernetes-int-or-string": True,
        "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$",
        "maxLength": 24,
    },
}

_RESOURCES = {
    "type": "object",
    "properties": {
        "requests": {**_AMOUNTS, "description": "What the server is guaranteed, such as cpu: 2, memory: 8Gi."},
        "limits": {**_AMOUNTS, "description": "What the server may use at most."},
    },
}

_LOCAL_REF = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": {**_NAME, "minLength": 1, "description": "Name of the Secret."}},
}


def _items(schema: dict[str, Any], limit: int, key: str | None = None) -> dict[str, Any]:
    kind: dict[str, Any] = {"x-kubernetes-list-type": "atomic"}
    if key:
        kind = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}
    return {"type": "array", "maxItems": limit, "items": schema, **kind}


Env = Annotated[list[dict[str, Any]], Field(max_length=64), WithJsonSchema(_items(_ENV, 64, "name"))]
EnvFrom = Annotated[list[dict[str, Any]], Field(max_length=16), WithJsonSchema(_items(_ENV_FROM, 16))]
Tolerations = Annotated[list[dict[str, Any]], Field(max_length=32), WithJsonSchema(_items(_TOLERATION, 32))]
ImagePullSecrets = Annotated[list[dict[str, str]], Field(max_length=16), WithJsonSchema(_items(_LOCAL_REF, 16, "name"))]
Resources = Annotated[dict[str, dict[str, int | str]], WithJsonSchema(_RESOURCES)]
Affinity = Annotated[dict[str, Any], WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})]

# Label values as metav1 bounds them.
Labels = Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=32)]
Annotations = Annotated[dict[str, Annotated[str, Field(max_length=4096)]], Field(max_length=32)]
