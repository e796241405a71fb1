"""Whether the namespace admits a Model's pod: its ResourceQuotas and LimitRanges, looked at before the download.

The API server's word comes last (its admission counts in one transaction); this says the same sooner, before gigabytes
are fetched for a pod that nobody would let in. Semantics: https://kubernetes.io/docs/concepts/policy/resource-quotas/
and https://kubernetes.io/docs/concepts/policy/limit-range/.
"""

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from moorage.placement.text import gib

Plain = Mapping[str, Any]

_DEVICES = ".deviceclass.resource.k8s.io/devices"
_BYTES = ("memory", "ephemeral-storage")
_POWERS = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", start=1)}
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]*)?)(?:e([0-9]{1,3})|([KMGTPE]i|[numkMGTPE]?))")


def amount(text: Any) -> Decimal:
    """A quantity as the API server writes it, in units of one (bytes, cores, devices); 0 for what is none."""
    match = _QUANTITY.fullmatch(str(text))
    if match is None:
        return Decimal(0)
    number, exponent, unit = match.groups()
    value = Decimal(str(number))
    if unit in _BINARY:
        return value * _BINARY[unit]
    return value.scaleb(int(exponent) if exponent else _POWERS[unit or ""])


def refusal(
    resources: Plain, devices: Plain, priority_class: str | None, quotas: Iterable[Plain], limits: Iterable[Plain]
) -> str | None:
    """Why a pod with one container of these core/v1 `resources` would not be admitted; None where it would.

    `devices` are those that its claims ask for, by DeviceClass. Quotas are {name, hard, used, selectors: [{scopeName,
    operator, values}]}, limit ranges {name, items} with the items as in core/v1.
    """
    ranges = sorted(limits, key=lambda r: str(r["name"]))
    found = _admitted_as(resources, ranges)
    for limit_range in ranges:
        for item in limit_range["items"]:
            if item.get("type") in ("Container", "Pod") and (why := _outside(found, item, str(limit_range["name"]))):
                return why
    asked = _charged(found, devices)
    for quota in sorted(quotas, key=lambda q: str(q["name"])):
        if _applies(quota, priority_class) and (why := _exceeded(asked, quota)):
            return why
    return None


def admitted(
    wanted: int,
    resources: Plain,
    devices: Plain,
    priority_class: str | None,
    quotas: Iterable[Plain],
    limits: Iterable[Plain],
) -> tuple[int, str]:
    """How many of `wanted` such pods, none of which there is yet, the quotas let in; and why no more.

    What is wrong with each single one is `refusal`'s business.
    """
    asked = _charged(_admitted_as(resources, sorted(limits, key=lambda r: str(r["name"]))), devices)
    most, why = wanted, ""
    for quota in sorted(quotas, key=lambda q: str(q["name"])):
        for key, limit in sorted((quota.get("hard") or {}).items()) if _applies(quota, priority_class) else ():
            used = (quota.get("used") or {}).get(key, 0)
            fit = int((amount(limit) - amount(used)) // asked[key]) if asked.get(key) else most
            if fit < most:
                most, why = max(fit, 0), f"{used} of {limit} {_name(key)} in use (quota {quota['name']})"
    return most, why


def _admitted_as(resources: Plain, ranges: Iterable[Plain]) -> dict[str, dict[str, Any]]:
    """The requests and limits of a container with those that limit ranges give it."""
    found = {kind: dict(resources.get(kind) or {}) for kind in ("requests", "limits")}
    for limit_range in ranges:
        for item in limit_range["items"]:
            if item.get("type") == "Container":
                _fill(found, item)
    return found


def _fill(found: dict[str, dict[str, Any]], item: Plain) -> None:
    """What the LimitRanger admission plugin adds to a container that says nothing of a resource."""
    for resource, value in {**(item.get("max") or {}), **(item.get("default") or {})}.items():
        found["limits"].setdefault(resource, value)
    for resource, value in found["limits"].items():
        if resource not in (item.get("defaultRequest") or {}):
            found["requests"].setdefault(resource, value)
    for resource, value in (item.get("defaultRequest") or {}).items():
        found["requests"].setdefault(resource, value)


def _outside(found: Plain, item: Plain, name: str) -> str | None:
    """A limit or request that a LimitRange refuses, or that its defaults contradict."""
    for resource, request in found["requests"].items():
        limit = found["limits"].get(resource)
        if limit is not None and amount(request) > amount(limit):
            return (
                f"limit range {name} gives containers a {resource} limit of {limit}, and the server requests "
                f"{_told(resource, amount(request))}; set spec.resources.limits.{resource}"
            )
    for resource, most in (item.get("max") or {}).items():
        asked = max(amount(found[kind].get(resource, 0)) for kind in found)
        if asked > amount(most):
            what = f"at most {most} of {resource} in a {item['type'].lower()}"
            return f"limit range {name} allows {what}; the server needs {_told(resource, asked)}"
    for resource, least in (item.get("min") or {}).items():
        request = found["requests"].get(resource)
        if request is not None and amount(request) < amount(least):
            what = f"at least {least} of {resource} in a {item['type'].lower()}"
            return f"limit range {name} wants {what}; the server requests {_told(resource, amount(request))}"
    return None


def _charged(found: Plain, devices: Plain) -> dict[str, Decimal]:
    """What a quota counts of the pod, by the quota's names."""
    asked = {"pods": Decimal(1), "count/pods": Decimal(1)}
    for kind, values in found.items():
        for resource, value in values.items():
            asked[f"{kind}.{resource}"] = amount(value)
            if kind == "requests" and resource in ("cpu", *_BYTES):
                asked[resource] = amount(value)
    for resource, value in found["limits"].items():
        if "/" in resource:  # an extended resource's request is its limit, and quotas know requests only
            asked.setdefault(f"requests.{resource}", amount(value))
    return asked | {f"{name}{_DEVICES}": Decimal(int(count)) for name, count in devices.items()}


def _exceeded(asked: Mapping[str, Decimal], quota: Plain) -> str | None:
    used = quota.get("used") or {}
    for key, most in sorted((quota.get("hard") or {}).items()):
        resource = key.partition(".")[2] if key.startswith(("requests.", "limits.")) else key
        if key in asked and amount(used.get(key, 0)) + asked[key] > amount(most):
            told = _name(key)
            need = "" if asked[key] == 1 and "/" in told else f"; the server needs {_told(resource, asked[key])}"
            return f"{used.get(key, 0)} of {most} {told} in use (quota {quota['name']}){need}"
        if key not in asked and key.startswith(("requests.", "limits.")) and resource in ("cpu", "memory"):
            field = f"spec.resources.{key}"
            return f"quota {quota['name']} counts {key}, so every pod has to say it; set {field}"
    return None


def _name(key: str) -> str:
    """What a quota's key counts, as people call it: nvidia.com/gpu, requests.memory."""
    resource = key.partition(".")[2] if key.startswith(("requests.", "limits.")) else key
    return resource if "/" in resource and not key.endswith(_DEVICES) else key.removesuffix(_DEVICES)


def _applies(quota: Plain, priority_class: str | None) -> bool:
    """Whether a quota with scopes counts a server's pod: no deadline, and memory requested, so never BestEffort."""
    return all(_in_scope(selector, priority_class) for selector in quota.get("selectors") or ())


def _in_scope(selector: Plain, priority_class: str | None) -> bool:
    scope, values = selector.get("scopeName"), selector.get("values") or ()
    if scope != "PriorityClass":
        return scope in ("NotTerminating", "NotBestEffort")
    match selector.get("operator"):
        case "In":
            return priority_class in values
        case "NotIn":
            return priority_class not in values
        case "DoesNotExist":
            return priority_class is None
    return priority_class is not None


def _told(resource: str, value: Decimal) -> str:
    if resource in _BYTES:
        return gib(-(-int(value) // 2**20))
    return f"{value.normalize():f}"
