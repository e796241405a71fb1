"""Who has a name, who hears of a change, and whose aliases point at a Model."""

import re
from typing import Any

from moorage import names
from moorage.control import naming
from moorage.control.store import ALIAS, MODEL, Key, Store


class Desk:
    """A store without a cluster; `heard` is who was woken because of links."""

    def __init__(self, *namespaces: str) -> None:
        self.heard: list[Key] = []
        self.namespaces = {"n", *namespaces}
        self.store = Store(linked=self.heard.append)
        self._version = 0

    def put(self, kind: str, name: str, made: str = "1", namespace: str = "n", **spec: Any) -> Key:
        self._version += 1
        key = Key(kind, namespace, name)
        meta = {"name": name, "namespace": namespace, "uid": str(key), "resourceVersion": str(self._version)}
        obj = {"apiVersion": names.API_VERSION, "kind": kind, "metadata": {**meta, "creationTimestamp": made}}
        self.store.put(key, {**obj, "spec": spec})
        return key

    def drop(self, key: Key) -> None:
        self._version += 1
        self.store.drop(key, self._version)

    def taken(self, key: Key) -> dict[str, str]:
        """Each served name that `key` has not got, and what has it: the words after "is that of" or "is for"."""
        obj = self.store.get(key)
        assert obj is not None
        lost = naming.taken(self.store, key, obj, self.namespaces.__contains__)
        return {name: re.split(r"is that of |is for |,| to give", why)[1] for name, why in lost.items()}


def to(*models: str, namespace: str = "") -> list[dict[str, Any]]:
    extra = {"namespace": namespace} if namespace else {}
    return [{"modelRef": {"name": name, **extra}} for name in models]


def test_the_older_claim_wins_and_the_other_hears_when_it_goes():
    desk = Desk()
    old = desk.put(MODEL, "old", made="1", servedNames=["x"])
    young = desk.put(ALIAS, "young", made="2", servedNames=["x"], targets=to("old"))
    assert old in desk.heard
    assert desk.taken(old) == {}
    assert desk.taken(young) == {"x": "Model old"}
    desk.heard.clear()
    desk.put(MODEL, "old", made="1", servedNames=[])
    assert young in desk.heard
    assert desk.taken(young) == {}


def test_own_names_come_first_an_alias_before_a_model():
    desk = Desk()
    claimer = desk.put(MODEL, "claimer", made="1", servedNames=["chat"])
    model = desk.put(MODEL, "chat", made="2")
    assert desk.taken(claimer) == {"chat": "Model chat"}
    assert claimer in desk.store.claimants("n", "chat")
    alias = desk.put(ALIAS, "chat", made="3", targets=to("chat"))
    assert desk.taken(claimer) == {"chat": "ModelAlias chat"}
    assert alias in desk.store.claimants("n", "chat"), "it hides the Model, and hears when that comes or goes"
    assert desk.taken(model) == {}


def test_names_of_other_namespaces_are_no_conflict_but_what_begins_with_a_namespace_is():
    """Whether team has such a Model or not: it may get one, and its clients must not get to another one until then."""
    desk = Desk("team")
    desk.put(MODEL, "m", namespace="team", servedNames=["x"])
    mine = desk.put(MODEL, "mine", servedNames=["x", "team/m", "team/none", "meta-llama/m"])
    assert desk.taken(mine) == {"team/m": "namespace team", "team/none": "namespace team"}
    desk.namespaces.add("meta-llama")
    assert "meta-llama/m" in desk.taken(mine)
    assert desk.store.pretenders("meta-llama") == desk.store.pretenders("team") == {mine}
    desk.put(MODEL, "mine", servedNames=["x"])
    assert desk.store.pretenders("team") == set()


def test_the_own_namespace_in_front_is_not_claimed_but_there_already():
    desk = Desk()
    mine = desk.put(MODEL, "mine", servedNames=["n/x"])
    obj = desk.store.get(mine)
    assert obj is not None
    lost = naming.taken(desk.store, mine, obj, desk.namespaces.__contains__)
    assert "claim x alone in spec.servedNames" in lost["n/x"]


def test_a_claim_of_the_own_name_is_no_conflict():
    desk = Desk()
    assert desk.taken(desk.put(MODEL, "m", servedNames=["m"])) == {}


def test_aliases_of_a_model_across_namespaces():
    desk = Desk()
    model = desk.put(MODEL, "m", namespace="shared")
    near = desk.put(ALIAS, "near", namespace="shared", targets=to("x"), fallbacks=to("m"))
    far = desk.put(ALIAS, "far", namespace="team", targets=to("m", namespace="shared"))
    desk.put(ALIAS, "other", namespace="team", targets=to("m"))
    assert naming.aliases_of(desk.store, model) == [near, far]
    assert model in desk.heard
    assert desk.store.guests("team") == [far]
    assert desk.store.guests("shared") == []
    desk.heard.clear()
    desk.drop(far)
    assert desk.heard == [model]
