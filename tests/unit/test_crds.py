"""The generated CRDs: committed as generated, structural, bounded, and explained field by field."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, Field

from moorage.api.crd import KINDS, crd, crd_files, structural
from moorage.api.managed_args import ARG_RULES, ARGS_BY_OWNER, ENV_RULES
from moorage.api.source import STORAGE_IS_IMMUTABLE

CRDS = Path(__file__).resolve().parents[2] / "crds"
CASES = Path(__file__).resolve().parents[1] / "api" / "cases"

# JSON Schema words that the API server refuses or that would loosen a structural schema.
FOREIGN = {
    "$ref",
    "$defs",
    "anyOf",
    "oneOf",
    "allOf",
    "not",
    "title",
    "const",
    "uniqueItems",
    "propertyNames",
    "nullable",
}
# Go's regexp (RE2) has no look-around and no back references.
NOT_RE2 = re.compile(r"\(\?[=!<]|\\[1-9]|\(\?P=|[*+?}]\+")
# Below these, names and types are OpenAI's own.
OPENAI = re.compile(r"\.spec\.request\.(defaults|overrides)\.")


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for key, step in (("items", "[]"), ("additionalProperties", "*")):
        if isinstance(schema.get(key), dict):
            yield from nodes(schema[key], path + step)


def every_node() -> list[tuple[str, dict[str, Any]]]:
    found = []
    for kind in KINDS:
        root = crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        found += [(f"{kind.name}{path}", schema) for path, schema in nodes(root)]
    return found


NODES = every_node()


def test_committed_crds_are_what_the_types_say():
    committed = {path.name: path.read_text() for path in CRDS.glob("*.yaml")}
    assert committed == crd_files(), "run `make crds`"


def test_no_foreign_words():
    assert {path: FOREIGN & set(schema) for path, schema in NODES if FOREIGN & set(schema)} == {}


def test_every_string_list_and_map_is_bounded():
    def unbounded(schema: dict[str, Any]) -> bool:
        match schema.get("type"):
            case "string":
                return "maxLength" not in schema and "enum" not in schema
            case "array":
                return "maxItems" not in schema
            case "object":
                return "additionalProperties" in schema and "maxProperties" not in schema
        return schema.get("x-kubernetes-int-or-string") is True and "maxLength" not in schema

    assert [path for path, schema in NODES if unbounded(schema)] == []


def test_every_node_has_a_type():
    any_json = re.compile(r"spec\.request\..*\.extra\*$")  # parameters that only an engine knows
    assert [s for p, s in NODES if any_json.search(p) and s != {"x-kubernetes-preserve-unknown-fields": True}] == []
    typed = [(p, s) for p, s in NODES if not any_json.search(p)]
    typeless = [p for p, s in typed if "type" not in s and not s.get("x-kubernetes-int-or-string")]
    assert typeless == []


def test_only_parameters_of_requests_are_floats():
    floats = {path for path, schema in NODES if schema.get("type") == "number"}
    assert floats
    assert [path for path in floats if not OPENAI.search(path)] == []


def test_every_field_is_explained():
    fields = [(p, s) for p, s in NODES if not p.endswith(("]", "*", ".metadata"))]
    assert [p for p, s in fields if not re.search(r"[A-Za-z0-9]", s.get("description", ""))] == []
    assert [p for p, s in fields if p.count(".") > 1 and not s["description"].endswith(".")] == []


def test_names_are_camel_case():
    names = {p.rsplit(".", 1)[-1].rstrip("[]*") for p, _ in NODES if "." in p and not OPENAI.search(p)}
    assert [name for name in names if not re.fullmatch(r"[a-z][A-Za-z0-9]*", name)] == []


def test_patterns_are_re2():
    patterns = [(p, s["pattern"]) for p, s in NODES if "pattern" in s]
    patterns += [
        (p, pattern)
        for p, s in NODES
        for rule in s.get("x-kubernetes-validations", [])
        for pattern in re.findall(r"matches\('((?:[^'\\]|\\.)*)'\)", rule["rule"])
    ]
    assert len(patterns) > 10
    assert [item for item in patterns if NOT_RE2.search(item[1])] == []


def test_the_re2_check_finds_what_re2_lacks():
    for pattern in ("(?=a)", "(?!a)", "(?<=a)", r"(a)\1", "a++"):
        assert NOT_RE2.search(pattern), pattern
    assert not NOT_RE2.search("^(?:a|b)+$")


def test_rules_are_static_sentences():
    rules = [(p, rule) for p, s in NODES for rule in s.get("x-kubernetes-validations", [])]
    assert len(rules) > 50
    for path, rule in rules:
        assert set(rule) == {"rule", "message"}, path
        assert 20 <= len(rule["message"]) <= 400, (path, rule["message"])
        assert "\n" not in rule["message"]


def test_every_rule_has_a_case_that_it_refuses():
    """The cases run against a real API server; those of the lists below have tests of their own there."""
    cases = [case for path in CASES.glob("*.yaml") for case in yaml.safe_load(path.read_text())]
    refusals = [words for case in cases for words in case.get("refused", [])]
    elsewhere = {rule.message for rule in (*ARG_RULES, *ENV_RULES)} | {STORAGE_IS_IMMUTABLE.message}
    messages = {rule["message"] for _, s in NODES for rule in s.get("x-kubernetes-validations", [])}
    untried = {m for m in messages - elsewhere if " has both " not in m and not any(words in m for words in refusals)}
    assert untried == set()


def test_a_status_has_no_defaults_and_only_a_spec_has_rules():
    statuses = [(p, s) for p, s in NODES if ".status" in p]
    assert [p for p, s in statuses if "default" in s or "x-kubernetes-validations" in s] == []


def test_conditions_are_a_map_by_type():
    found = [s for p, s in NODES if p.endswith(".status.conditions")]
    assert len(found) == 3
    for schema in found:
        assert schema["x-kubernetes-list-type"] == "map"
        assert schema["x-kubernetes-list-map-keys"] == ["type"]
        assert {"type", "status"} <= set(schema["items"]["required"])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_columns_and_selectable_fields_point_at_fields(kind):
    paths = {path.removeprefix(kind.name): schema for path, schema in NODES if path.startswith(f"{kind.name}.")}
    for column in kind.columns:
        if column.path != ".metadata.creationTimestamp":
            schema = paths[column.path]
            assert column.type == ("date" if schema.get("format") == "date-time" else schema["type"])
    for path in kind.selectable:
        assert paths[path]["type"] == "string"


def test_names_of_the_kinds():
    names = {c["spec"]["names"]["kind"]: c["spec"]["names"] for c in map(yaml.safe_load, crd_files().values())}
    assert {kind: (n["plural"], n["shortNames"]) for kind, n in names.items()} == {
        "Model": ("models", ["mdl"]),
        "ModelAlias": ("modelaliases", ["mda"]),
        "ModelDownload": ("modeldownloads", ["mdd"]),
    }
    assert all(n["categories"] == ["moorage"] for n in names.values())


def test_every_argument_has_one_owner():
    names = [name for names in ARGS_BY_OWNER.values() for name in names]
    assert len(names) == len(set(names))


class Leaf(BaseModel):
    x: int | str = 1


class Loop(BaseModel):
    again: "Loop | None" = None


class Tuple(BaseModel):
    pair: tuple[int, int] = (1, 2)


class Exclusive(BaseModel):
    above: int = Field(gt=0)


@pytest.mark.parametrize(
    ("type_", "complaint"),
    [
        (Leaf, "x: a CRD has no choice of types"),
        (Loop, "a CRD cannot be recursive"),
        (Tuple, "pair: a CRD has no prefixItems"),
        (Exclusive, "above: a CRD has no exclusiveMinimum"),
    ],
)
def test_what_a_crd_cannot_say_is_refused(type_, complaint):
    with pytest.raises(ValueError, match=complaint):
        structural(type_.model_json_schema())
