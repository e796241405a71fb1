"""The test cluster's network enforces NetworkPolicies as Kubernetes describes them: packets, against the evaluator that
the chart's unit tests believe in (tests/support/netpol.py). Two readings of one document, which have to agree."""

import concurrent.futures
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.demo import Demo
from tests.e2e import callers
from tests.e2e.callers import Caller
from tests.support.netpol import Network, Pod

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

RED, BLUE = "rules-red", "rules-blue"
SPACES = {RED: {"team": "red"}, BLUE: {"team": "blue"}}
PORTS = {"http": 8080, "admin": 9000}
PODS = {
    (RED, "web"): {"app": "web"},
    (RED, "friend"): {"role": "friend"},
    (RED, "stranger"): {},
    (BLUE, "friend"): {"role": "friend"},
    (BLUE, "stranger"): {"role": "other"},
}
FRIEND, BLUES = (
    {"podSelector": {"matchLabels": {"role": "friend"}}},
    {"namespaceSelector": {"matchLabels": SPACES[BLUE]}},
)
NOT_OTHER = {"podSelector": {"matchExpressions": [{"key": "role", "operator": "NotIn", "values": ["other"]}]}}
# Each beside a policy that lets nobody in, because policies add up, and after another one: each must change something.
CASES: dict[str, list[dict[str, Any]]] = {
    "everybody": [{}],
    "one port": [{"ports": [{"port": 8080}]}],
    "a named port": [{"ports": [{"port": "admin"}]}],
    "pods of the own namespace": [{"from": [FRIEND]}],
    "a range of ports": [{"ports": [{"port": 8081, "endPort": 9000}]}],
    "all pods of the own namespace": [{"from": [{"podSelector": {}}]}],
    "a namespace": [{"from": [BLUES]}],
    "the right port of the wrong protocol and a name that no port has": [
        {"ports": [{"port": 8080, "protocol": "UDP"}, {"port": "nowhere"}, {"port": 9000}]}
    ],
    "all namespaces": [{"from": [{"namespaceSelector": {}}], "ports": [{"port": 8080}]}],
    "some pods of a namespace": [{"from": [{**FRIEND, **BLUES}]}],
    "some pods here and a whole namespace": [{"from": [FRIEND, BLUES], "ports": [{"port": "http"}]}],
    "expressions": [{"from": [{**NOT_OTHER, "namespaceSelector": {}}]}],
    "a namespace by its name": [
        {"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": BLUE}}}]}
    ],
    "two rules": [{"from": [FRIEND]}, {"from": [BLUES], "ports": [{"port": 8080}]}],
}


def policy(name: str, ingress: list[dict[str, Any]]) -> dict[str, Any]:
    spec = {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"], "ingress": ingress}
    meta = {"name": name, "namespace": RED}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta, "spec": spec}


Reached = dict[tuple[str, int], bool]


class Town:
    def __init__(self, demo: Demo, pods: dict[str, Caller]) -> None:
        self.demo, self.pods = demo, pods
        self.target = pods[f"{RED}/web"].address
        self.sources = {name: caller for name, caller in pods.items() if name != f"{RED}/web"}
        self.last: Reached = {}
        self.pool = concurrent.futures.ThreadPoolExecutor(len(self.sources))

    def reached(self) -> Reached:
        """Who gets through to which port now. Nobody listens: a port that is let through is `closed`."""

        def one(name: str) -> Reached:
            words = self.sources[name].dial(*(f"{self.target}:{port}" for port in PORTS.values()))
            assert set(words) <= {"closed", "refused"}, words
            return {(name, port): word == "closed" for port, word in zip(PORTS.values(), words, strict=True)}

        return {k: v for found in self.pool.map(one, self.sources) for k, v in found.items()}

    def until(self, wanted: Reached) -> None:
        deadline = time.monotonic() + 60
        while (found := self.reached()) != wanted:
            assert time.monotonic() < deadline, {k: v for k, v in found.items() if v != wanted[k]}
        self.last = wanted

    def apply(self, *policies: dict[str, Any]) -> None:
        self.demo.kubectl("apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": policies}))


@pytest.fixture(scope="module")
def town(demo: Demo) -> Iterator[Town]:
    for name, labels in SPACES.items():
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        demo.kubectl("apply", "-f", "-", input=json.dumps(body))
    try:
        made = Town(demo, callers.start(demo, PODS, PORTS))
        made.until(dict.fromkeys(made.reached(), True))
        yield made
        made.pool.shutdown()
    finally:
        demo.kubectl("delete", "namespace", *SPACES, "--ignore-not-found", "--wait=false")


@pytest.fixture(scope="module")
def nobody(town: Town) -> Reached:
    """A policy that lets nobody in, in force."""
    town.apply(policy("nobody", []))
    reached = dict.fromkeys(town.reached(), False)
    town.until(reached)
    return reached


@pytest.mark.parametrize("case", CASES)
def test_packets_and_the_evaluator_agree(town: Town, nobody: Reached, case: str):
    policies = [policy("nobody", []), policy("tried", CASES[case])]
    network = Network(policies, SPACES)
    pods = {f"{space}/{name}": Pod(space, labels, PORTS) for (space, name), labels in PODS.items()}
    wanted = {(name, port): network.admits(pods[name], pods[f"{RED}/web"], port) for name, port in nobody}
    assert wanted not in (nobody, town.last), "or nothing is to be seen"
    town.apply(*policies)
    town.until(wanted)


def test_a_block_of_addresses_less_some(town: Town, nobody: Reached):
    but = town.pods[f"{BLUE}/friend"].address
    block = {"ipBlock": {"cidr": "10.0.0.0/8", "except": [f"{but}/32"]}}
    town.apply(policy("tried", [{"from": [block], "ports": [{"port": 8080}]}]))
    town.until({(name, port): port == 8080 and name != f"{BLUE}/friend" for name, port in nobody})


def test_a_pod_and_a_label_that_come_later_count_at_once(town: Town, nobody: Reached):
    town.apply(policy("tried", [{"from": [FRIEND]}]))
    wanted = {(name, port): name == f"{RED}/friend" for name, port in nobody}
    town.until(wanted)
    stranger = town.pods[f"{RED}/stranger"]
    town.demo.kubectl("-n", RED, "label", "pod", stranger.name, "role=friend")
    town.until({(name, port): name.startswith(RED) for name, port in nobody})
    town.demo.kubectl("-n", RED, "label", "pod", stranger.name, "role-")
    town.until(wanted)
    later = callers.start(town.demo, {(RED, "later"): {"role": "friend"}})[f"{RED}/later"]
    deadline = time.monotonic() + 60
    while later.dial(f"{town.target}:8080") != ["closed"]:
        assert time.monotonic() < deadline
    town.demo.kubectl("-n", RED, "delete", "pod", later.name)
