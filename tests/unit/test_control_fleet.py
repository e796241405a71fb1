"""The installation's GPUs in the settings file: pools and products, and what is refused with a sentence."""

import pytest
from pydantic import ValidationError

from moorage.control.fleet import GPUs
from moorage.placement.inventory import Taint

POOL = {"name": "l4", "labels": {"pool": "l4"}, "memory": "23034Mi", "gpus": 1, "maximum": 4}


def test_a_pool_is_what_its_nodes_will_be():
    taint = {"key": "team", "value": "a", "effect": "NoSchedule"}
    pool = {**POOL, "taints": [taint], "vendor": "AMD", "memory": "", "product": "mi300"}
    told = GPUs.model_validate({"nodePools": [pool], "products": {"mi300": "192Gi"}, "nodeDeadline": "20m"})
    (shape,) = told.shapes()
    assert (shape.resource, shape.gpu_memory_mib, shape.gpus, shape.maximum) == ("amd.com/gpu", 196_608, 1, 4)
    assert shape.taints == (Taint("team", "a", "NoSchedule"),)
    assert shape.holds({"pool": "l4", "more": "labels"})
    assert not shape.holds({"pool": "other"})


def test_slices_are_named_by_their_resource():
    (shape,) = GPUs.model_validate({"nodePools": [{**POOL, "resource": "nvidia.com/mig-1g.10gb"}]}).shapes()
    assert shape.resource == "nvidia.com/mig-1g.10gb"


def test_gpus_that_a_driver_publishes_are_named_by_it():
    (shape,) = GPUs.model_validate({"nodePools": [{**POOL, "driver": "gpu.amd.com"}]}).shapes()
    assert (shape.resource, shape.dra, shape.gpu_memory_mib) == ("gpu.amd.com", True, 23_034)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"nodePools": [{**POOL, "memory": ""}]}, "node pool l4: give memory, or a product that gpus.products knows"),
        ({"nodePools": [{**POOL, "memory": "", "product": "x"}]}, "give memory, or a product"),
        ({"nodePools": [{**POOL, "memory": "many"}]}, "l4: not a quantity"),
        ({"nodePools": [{**POOL, "memory": "23034"}]}, "l4: 23034 is no size of a GPU"),
        ({"nodePools": [{**POOL, "resource": "example.com/fpga"}]}, "example.com/fpga is no resource of GPUs"),
        ({"nodePools": [{**POOL, "driver": "example.com"}]}, "l4: example.com is no DRA driver that Moorage knows"),
        (
            {"nodePools": [{**POOL, "driver": "gpu.nvidia.com", "resource": "nvidia.com/mig-1g.10gb"}]},
            "l4: give either resource or driver",
        ),
        ({"nodePools": [POOL, POOL]}, "two node pools have one name: l4, l4"),
        ({"nodePools": [{**POOL, "labels": {}}]}, "labels"),
        ({"nodePools": [{**POOL, "gpus": 0}]}, "greater than or equal to 1"),
        ({"nodePools": [{**POOL, "gpu": 1}]}, "Extra inputs are not permitted"),
        ({"products": {"l4": "1Ki"}}, "product l4: 1Ki is no size of a GPU"),
        ({"nodeDeadline": "soon"}, "not a duration"),
    ],
)
def test_what_makes_no_sense_is_refused(values, words):
    with pytest.raises(ValidationError) as error:
        GPUs.model_validate(values)
    assert words in str(error.value)
