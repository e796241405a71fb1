import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
from aiohttp import web

from moorage.errors import Forbidden, Gone, Throttled, Unavailable
from moorage.kube import session
from moorage.kube.client import KubeClient
from moorage.kube.resources import CONFIG_MAPS, MODELS, NODES, PODS
from tests.support.scripted_server import Answer, ScriptedServer

POD = {"kind": "Pod", "metadata": {"name": "p"}}


class Setting:
    """A server whose answer a test sets, and a client of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.answer: Answer = json_answer(POD)
        self.server = ScriptedServer(self._answer)

    async def client(self, timeout: float = 30.0, **user: object) -> KubeClient:
        kubeconfig = self.server.kubeconfig(self.directory / "kubeconfig", **user)
        return await KubeClient.connect(kubeconfig, timeout=timeout)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self.answer(request)

    def sent(self, index: int = -1) -> tuple[str, str, object]:
        request = self.server.requests[index]
        body = self.server.bodies[index]
        return request.method, request.rel_url.raw_path_qs, orjson.loads(body) if body else None


def json_answer(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    async def answer(_: web.BaseRequest) -> web.Response:
        return web.json_response(body, status=status, headers=headers)

    return answer


@pytest.fixture
async def setting(tmp_path: Path) -> AsyncIterator[Setting]:
    setting = Setting(tmp_path)
    async with setting.server:
        yield setting


async def test_connect_sends_nothing_and_knows_its_namespace(setting: Setting):
    async with await setting.client() as client:
        assert client.namespace == "team-a"
    assert not setting.server.requests


async def test_a_get_is_one_request_with_our_name_and_token(setting: Setting):
    async with await setting.client(token="secret") as client:
        assert await client.get(PODS, "team-a", "p") == POD
        assert client.requests == {"get": 1}
    headers = setting.server.requests[0].headers
    assert setting.sent() == ("GET", "/api/v1/namespaces/team-a/pods/p", None)
    assert headers["User-Agent"].startswith("moorage/")
    assert headers["Authorization"] == "Bearer secret"
    assert headers["Accept-Encoding"] == "identity"


async def test_apply_is_a_patch_in_our_name(setting: Setting):
    manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "team-a"}}
    async with await setting.client() as client:
        await client.apply(manifest)
        await client.apply(manifest, force=True, field_manager="other", dry_run=True)
    path = "/api/v1/namespaces/team-a/configmaps/c"
    assert setting.sent(0) == ("PATCH", f"{path}?fieldManager=moorage&force=false", manifest)
    assert setting.sent(1)[1] == f"{path}?fieldManager=other&force=true&dryRun=All"
    assert setting.server.requests[0].headers["Content-Type"] == "application/apply-patch+yaml"


async def test_apply_status_sends_the_status_alone(setting: Setting):
    async with await setting.client() as client:
        await client.apply_status(MODELS, "team-a", "m", {"phase": "Ready"}, resource_version="7")
    method, path, body = setting.sent()
    assert (method, path) == (
        "PATCH",
        "/apis/moorage.dev/v1alpha1/namespaces/team-a/models/m/status?fieldManager=moorage&force=true",
    )
    assert body == {
        "apiVersion": "moorage.dev/v1alpha1",
        "kind": "Model",
        "metadata": {"name": "m", "namespace": "team-a", "resourceVersion": "7"},
        "status": {"phase": "Ready"},
    }


async def test_delete_names_the_uid_and_what_becomes_of_children(setting: Setting):
    async with await setting.client() as client:
        assert await client.delete(PODS, "team-a", "p", uid="u-1", propagation="Foreground")
        setting.answer = json_answer({"kind": "Status", "reason": "NotFound"}, status=404)
        assert not await client.delete(PODS, "team-a", "p")
    body = setting.sent(0)[2]
    assert isinstance(body, dict)
    assert (body["preconditions"], body["propagationPolicy"]) == ({"uid": "u-1"}, "Foreground")


async def test_list_follows_the_pages_and_completes_the_items(setting: Setting):
    async def pages(request: web.BaseRequest) -> web.Response:
        more = "" if "continue=second" in request.rel_url.raw_query_string else "second"
        items = [{"metadata": {"name": f"after-{more or 'end'}"}}]
        return web.json_response({"metadata": {"resourceVersion": "7", "continue": more}, "items": items})

    setting.answer = pages
    async with await setting.client() as client:
        items, version = await client.list(CONFIG_MAPS, label_selector="a in (b,c)", limit=1)
    assert version == "7"
    assert [item["metadata"]["name"] for item in items] == ["after-second", "after-end"]
    assert {(item["apiVersion"], item["kind"]) for item in items} == {("v1", "ConfigMap")}
    assert setting.sent(0)[1] == "/api/v1/configmaps?labelSelector=a+in+%28b%2Cc%29&limit=1"


async def test_an_empty_list_may_say_null(setting: Setting):
    setting.answer = json_answer({"metadata": {"resourceVersion": "7"}, "items": None})
    async with await setting.client() as client:
        assert await client.list(NODES) == ([], "7")


async def test_throttled_carries_the_servers_word(setting: Setting):
    setting.answer = json_answer({"kind": "Status", "code": 429}, status=429, headers={"Retry-After": "5"})
    async with await setting.client() as client:
        with pytest.raises(Throttled) as caught:
            await client.get(PODS, "team-a", "p")
    assert caught.value.retry_after == 5.0


async def test_an_answer_that_does_not_come_is_unavailable(setting: Setting):
    async def never(_: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(60)
        raise AssertionError

    setting.answer = never
    async with await setting.client(timeout=0.1) as client:
        with pytest.raises(Unavailable, match="no answer in time"):
            await client.get(PODS, "team-a", "p")


async def test_an_answer_cut_in_the_middle_is_unavailable(setting: Setting):
    async def cut(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b'{"kind"')
        assert request.transport is not None
        request.transport.close()
        return response

    setting.answer = cut
    async with await setting.client() as client:
        with pytest.raises(Unavailable):
            await client.get(PODS, "team-a", "p")


async def test_what_is_not_json_is_unavailable(setting: Setting):
    async def page(_: web.BaseRequest) -> web.Response:
        return web.Response(text="<html>please log in</html>")

    setting.answer = page
    async with await setting.client() as client:
        with pytest.raises(Unavailable):
            await client.get(PODS, "team-a", "p")


async def test_nothing_listens(setting: Setting):
    async with await setting.client() as client:
        await setting.server.__aexit__()
        with pytest.raises(Unavailable, match="GET /api/v1/namespaces/team-a/pods/p"):
            await client.get(PODS, "team-a", "p")


async def test_a_watch_refused_is_the_error_of_its_status(setting: Setting):
    setting.answer = json_answer({"kind": "Status", "code": 410, "message": "too old"}, status=410)
    async with await setting.client() as client:
        with pytest.raises(Gone):
            async with client.watch(PODS, resource_version="1"):
                pass
    assert "allowWatchBookmarks=true&resourceVersion=1&timeoutSeconds=300" in setting.sent()[1]


async def test_pod_logs_ask_for_little_and_survive_bad_bytes(setting: Setting):
    async def logs(_: web.BaseRequest) -> web.Response:
        return web.Response(body=b"caf\xe9\n")

    setting.answer = logs
    async with await setting.client() as client:
        assert await client.pod_logs("team-a", "p", "server", tail_lines=5, previous=True) == "caf�\n"
    assert setting.sent()[1].endswith("/pods/p/log?tailLines=5&limitBytes=16384&previous=true&container=server")


async def test_a_warning_is_logged_once(setting: Setting, caplog: pytest.LogCaptureFixture):
    setting.answer = json_answer(POD, headers={"Warning": '299 - "unknown field \\"spec.foo\\""'})
    async with await setting.client() as client:
        with caplog.at_level(logging.WARNING):
            await client.get(PODS, "team-a", "p")
            await client.get(PODS, "team-a", "p")
    assert caplog.text.count("unknown field") == 1


class TestLogInAgain:
    """Only the in-cluster token is read again by the library; exec plugins and token files are not."""

    @pytest.fixture(autouse=True)
    def _no_waiting(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(session, "_LOGIN_AGAIN_SECONDS", 0.0)

    async def test_after_a_401_the_token_file_is_read_again(self, setting: Setting):
        async def guarded(request: web.BaseRequest) -> web.Response:
            known = request.headers["Authorization"] == "Bearer new"
            return web.json_response(POD) if known else web.json_response({"kind": "Status"}, status=401)

        token = setting.directory / "token"
        token.write_text("old")
        setting.answer = guarded
        async with await setting.client(tokenFile=str(token)) as client:
            token.write_text("new")
            answers = await asyncio.gather(*(client.get(PODS, "team-a", "p") for _ in range(5)))
        assert answers == [POD] * 5

    async def test_credentials_that_can_no_longer_be_read_are_forbidden(self, setting: Setting):
        setting.answer = json_answer({"kind": "Status", "code": 401}, status=401)
        async with await setting.client(token="old") as client:
            (setting.directory / "kubeconfig").write_text("{}")
            with pytest.raises(Forbidden, match="no way into a cluster"):
                await client.get(PODS, "team-a", "p")

    async def test_a_token_that_stays_wrong_is_forbidden(self, setting: Setting):
        setting.answer = json_answer({"kind": "Status", "code": 401, "reason": "Unauthorized"}, status=401)
        async with await setting.client(token="wrong") as client:
            with pytest.raises(Forbidden) as caught:
                await client.get(PODS, "team-a", "p")
        assert caught.value.status == 401
        assert len(setting.server.requests) == 2
