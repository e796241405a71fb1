"""How much memory one GPU of a node has, and how much of it may be planned.

What a node says about its GPUs is written by other programs and by people: a text that is not exactly what its writer
documents is an unknown size with a reason, never a guess.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from moorage.api.common import quantity_bytes
from moorage.placement import vendors

MIB: Final = 1 << 20
LEAST_MIB: Final = 256
MOST_MIB: Final = 2 << 20
"""Sizes outside 256 MiB .. 2 TiB are taken for nonsense: no GPU is that small or that large."""

SHARE_PERMILLE: Final = 990
RESERVE_MIB: Final = 512
"""A program sees less than the label says (an H100's label is 81,559 MiB, CUDA sees 81,090); the driver keeps some."""

ANNOTATION: Final = "moorage.dev/gpu-memory"
AMD_ROUNDING_MIB: Final = 512
"""AMD's node labeller rounds to whole GiB (its cmd/k8s-node-labeller/main.go), so up to half a GiB may not be there."""


@dataclass(frozen=True, slots=True)
class GPUMemory:
    """Memory of one GPU: `total_mib` as its source says, `usable_mib` for plans; both 0 and `why` where unknown.

    `label_mib` is what a `Gt` on the node's memory label compares with; None where the label is no number.
    `told_by` is the label (key, value) that tells the size, itself or through the table of products. `untold`: nothing
    says anything of the size, which is another thing than nonsense.
    """

    total_mib: int = 0
    usable_mib: int = 0
    why: str = ""
    label_mib: int | None = None
    told_by: tuple[str, str] | None = None
    untold: bool = False


def usable_mib(total_mib: int) -> int:
    """The part of a GPU's nominal memory that may be planned: 99 % less 512 MiB."""
    return max(total_mib * SHARE_PERMILLE // 1000 - RESERVE_MIB, 0)


def least_total_mib(need_mib: int) -> int:
    """The smallest nominal memory of which `need_mib` may be planned; the inverse of `usable_mib`."""
    return -((need_mib + RESERVE_MIB) * 1000 // -SHARE_PERMILLE)


def size_class(total_mib: int) -> int:
    """The class of a GPU: its nominal memory in whole GiB, so that 24,564 and 24,576 MiB are both 24."""
    return (total_mib + 512) // 1024


def most_of_class(size: int) -> int:
    """The most MiB that a GPU of a size class has; the inverse of `size_class`."""
    return size * 1024 + 511


def of_node(
    resource: str, labels: Mapping[str, str], annotation: str | None, products: Mapping[str, Any], report: Iterable[int]
) -> GPUMemory:
    """Memory of one GPU of `resource` on a node.

    In this order: the agent's report (MiB of each GPU as NVML counts them: the smallest, because nobody chooses which
    GPU a pod gets), the annotation of a person, the labels, the table of products. The first that is there decides,
    even if it is nonsense: what a person or a program meant to say must not be replaced by something else.
    """
    key = vendors.memory_label(resource)
    text = labels.get(key)
    label = vendors.integer(text or "")
    reported = [int(mib) for mib in report]
    if reported and not vendors.is_slice(resource):
        least = min(reported)
        return replace(_checked(least, f"the agent reports {least} MiB"), label_mib=label)
    if annotation is not None and not vendors.is_slice(resource):
        found = _of_quantity(annotation, f"annotation {ANNOTATION}")
    elif resource == vendors.AMD_GPU and (texts := vendors.amd_memory_texts(labels)):
        found = replace(_of_amd(texts), told_by=None if text is None else (key, text))
    elif resource != vendors.AMD_GPU and text is not None:
        found = replace(_of_number(text, f"label {key}"), told_by=(key, text))
    else:
        found = _of_product(labels, products)
    return replace(found, label_mib=label)


def _checked(total: int, what: str, usable: int | None = None) -> GPUMemory:
    if not LEAST_MIB <= total <= MOST_MIB:
        return GPUMemory(why=f"{what}, which is no size of a GPU")
    return GPUMemory(total, usable_mib(total) if usable is None else usable)


def _of_number(text: str, where: str) -> GPUMemory:
    number = vendors.integer(text)
    if number is None:
        return GPUMemory(why=f"{where} is '{text[:32]}', not a number of MiB")
    return _checked(number, f"{where} is {number}")


def _of_quantity(text: str, where: str) -> GPUMemory:
    try:
        size = quantity_bytes(text) // MIB
    except (ValueError, OverflowError, ArithmeticError):
        return GPUMemory(why=f"{where} is '{text[:32]}', not a quantity such as 24Gi")
    return _checked(size, f"{where} is {text[:32]}")


_AMD_SIZE: Final = re.compile(r"([0-9]{1,9})([KMGT])i?B?")
_AMD_UNIT: Final = {"K": 10, "M": 20, "G": 30, "T": 40}


def _of_amd(texts: tuple[str, ...]) -> GPUMemory:
    """The smallest of the sizes that AMD's labels tell; several stand there where a node's GPUs differ."""
    totals = []
    for text in texts:
        match = _AMD_SIZE.fullmatch(text)
        if match is None:
            return GPUMemory(why=f"label {vendors.AMD_MEMORY} is '{text[:32]}', not a size such as 64G")
        totals.append((int(match[1]) << _AMD_UNIT[match[2]]) // MIB)
    total = min(totals)
    return _checked(total, f"label {vendors.AMD_MEMORY} is {total} MiB", usable_mib(total - AMD_ROUNDING_MIB))


def _of_product(labels: Mapping[str, str], products: Mapping[str, Any]) -> GPUMemory:
    for key in vendors.PRODUCT_LABELS:
        product = labels.get(key)
        if product is not None and product in products:
            value, where = products[product], f"the size of product {product}"
            found = _checked(value, f"{where} is {value}") if isinstance(value, int) else _of_quantity(value, where)
            return replace(found, told_by=(key, product))
    named = next((f" {labels[key]}" for key in vendors.PRODUCT_LABELS if key in labels), "")
    return GPUMemory(
        why=f"no label, annotation or product table says how much memory its GPUs{named} have", untold=True
    )
