"""Order in what several streams tell of one object: watch, list, and answers to our own writes."""

import tracemalloc
from typing import Any

from moorage import names
from moorage.control.store import ALIAS, DOWNLOAD, MODEL, Change, Key, Store

KEY = Key(MODEL, "n", "m")


def obj(version: int, *, kind: str = MODEL, name: str = "m", **rest: Any) -> dict[str, Any]:
    meta = {"name": name, "namespace": "n", "uid": "u", "resourceVersion": str(version)}
    return {"apiVersion": names.API_VERSION, "kind": kind, "metadata": meta, "spec": {"source": {}}, **rest}


def test_an_answer_that_comes_after_the_deletion_brings_nothing_back():
    store = Store()
    store.put(KEY, obj(5))
    store.drop(KEY, 7)
    store.put(KEY, obj(6))
    assert store.get(KEY) is None
    store.put(KEY, obj(9))
    assert store.get(KEY) is not None, "one of the same name made later counts"


def test_a_list_drops_what_it_did_not_show_but_nothing_newer():
    store = Store()
    store.put(KEY, obj(5))
    newer = Key(MODEL, "n", "newer")
    store.put(newer, obj(12, name="newer"))
    store.keep_only(MODEL, set(), 10)
    assert store.get(KEY) is None
    assert store.get(newer) is not None, "it was made after the list was taken"


def test_who_uses_a_download_does_not_concern_the_models_that_do():
    changes: list[tuple[Key, Change]] = []
    store = Store(lambda key, change: changes.append((key, change)))
    key = Key(DOWNLOAD, "n", "d")
    store.put(key, obj(1, kind=DOWNLOAD, name="d", status={"phase": "Ready"}))
    changes.clear()
    store.put(key, obj(2, kind=DOWNLOAD, name="d", status={"phase": "Ready", "usedBy": ["m"]}))
    assert changes == []
    store.put(key, obj(3, kind=DOWNLOAD, name="d", status={"phase": "Checking", "usedBy": ["m"]}))
    assert changes == [(key, Change(False, True))]


def test_a_download_knows_for_whom_it_is_made_before_that_is_written():
    """Its Job goes where that Model's servers will be; a volume made elsewhere would stay there for ever."""
    told: list[Key] = []
    store = Store(linked=told.append)
    model, download = Key(MODEL, "n", "m"), Key(DOWNLOAD, "n", "d")
    store.put(model, obj(1))
    store.expect(model, [download])
    assert list(store.dependents(download)) == [model]
    assert told[-1] == download
    store.put(model, obj(2, status={"source": {"downloadName": "other"}}))
    assert list(store.dependents(download)) == [], "what is written counts"


def test_models_follow_a_download_that_runs_in_coarse_steps():
    changes: list[Change] = []
    store = Store(lambda _key, change: changes.append(change))
    key = Key(DOWNLOAD, "n", "d")
    for version in range(101):
        message = f"{version}% of 4.0Gi"
        conditions = [{"type": "Ready", "status": "False", "reason": "Downloading", "message": message}]
        status = {"phase": "Downloading", "percent": version, "bytes": {"done": version}, "conditions": conditions}
        store.put(key, obj(version + 1, kind=DOWNLOAD, name="d", status=status))
    assert len(changes) == 100 // 5 + 1
    body = store.get(key)
    assert body is not None
    assert body["status"]["percent"] == 100, "what it holds is the newest all the same"
    conditions[0]["reason"] = "Stalled"
    store.put(key, obj(200, kind=DOWNLOAD, name="d", status={**body["status"], "conditions": conditions}))
    assert len(changes) == 100 // 5 + 2


def test_an_alias_of_another_shape_is_kept_all_the_same():
    heard: list[Key] = []
    store = Store(lambda key, _change: heard.append(key))
    key = Key(ALIAS, "n", "a")
    store.put(key, {**obj(1, kind=ALIAS, name="a"), "spec": {"targets": [{}, {"modelRef": {}}]}})
    assert heard == [key]


def test_objects_take_no_more_memory_than_their_text():
    """orjson's own bytes keep the buffer that they grew in: 8 KiB for a body of half that."""
    store, models = Store(), 500
    tracemalloc.start()
    for i in range(models):
        store.put(Key(MODEL, "n", f"m-{i}"), obj(1, name=f"m-{i}", status={"words": "x" * 4200}))
    size = tracemalloc.get_traced_memory()[0] / models
    tracemalloc.stop()
    assert size < 7000
