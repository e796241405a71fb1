"""The ResourceClaimTemplate of a decision on nodes whose GPUs DRA drivers publish (resource.k8s.io/v1).

The scheduler's allocator takes the first device that matches, so the order of sizes is said by the request itself:
`firstAvailable` alternatives, each a window of sizes, the smallest class first. Their order is strict on a node, but
across nodes only a score: 8 less the alternative's place. Alternatives that match nothing are put between the classes,
so that neighbours differ by as much as the list of eight allows.
"""

from typing import Any, Final

from moorage.placement import memory

REQUEST: Final = "gpu"
MOST_ALTERNATIVES: Final = 8


def claim_template(
    driver: str, need_mib: int, gpus: int, largest_by_class: dict[int, int], *, exact: bool, same_product: bool
) -> dict[str, Any]:
    """Spec of a ResourceClaimTemplate for `gpus` devices with `need_mib` each.

    `largest_by_class` gives for every size class of existing devices that suffices the MiB of its largest one; with
    `exact` there is one, and nothing larger may be taken. `same_product`: several devices must be of one product.
    """
    least = memory.least_total_mib(need_mib)
    classes = sorted(largest_by_class.items())
    windows = []
    for index, (size, largest) in enumerate(classes[:MOST_ALTERNATIVES]):
        upper = largest if exact or index < min(len(classes), MOST_ALTERNATIVES) - 1 else None
        windows.append((f"c{size}", _sizes(driver, least, upper)))
        least = largest + 1
    request = _alternatives(driver, windows, gpus) if len(windows) > 1 else _exactly(driver, windows[0][1], gpus)
    devices: dict[str, Any] = {"requests": [{"name": REQUEST, **request}]}
    if gpus > 1 and same_product:
        devices["constraints"] = [{"requests": [REQUEST], "matchAttribute": f"{driver}/productName"}]
    return {"spec": {"devices": devices}}


def _exactly(driver: str, expression: str, gpus: int) -> dict[str, Any]:
    return {"exactly": _asks(driver, expression, gpus)}


def _alternatives(driver: str, windows: list[tuple[str, str]], gpus: int) -> dict[str, Any]:
    last = MOST_ALTERNATIVES - 1
    places = {index * last // (len(windows) - 1): window for index, window in enumerate(windows)}
    alternatives = []
    for place in range(MOST_ALTERNATIVES):
        name, expression = places.get(place, (f"x{place}", "false"))
        alternatives.append({"name": name, **_asks(driver, expression, gpus)})
    return {"firstAvailable": alternatives}


def _asks(driver: str, expression: str, gpus: int) -> dict[str, Any]:
    return {
        "deviceClassName": driver,
        "allocationMode": "ExactCount",
        "count": gpus,
        "selectors": [{"cel": {"expression": expression}}],
    }


def _sizes(driver: str, least_mib: int, most_mib: int | None) -> str:
    size = f"device.capacity['{driver}'].memory"
    lower = f"{size}.compareTo(quantity('{least_mib}Mi')) >= 0"
    return lower if most_mib is None else f"{lower} && {size}.compareTo(quantity('{most_mib}Mi')) <= 0"
