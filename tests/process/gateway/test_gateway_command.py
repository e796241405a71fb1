"""`moorage gateway` as a process: options, signals, the drain, and what it says when it cannot start."""

import asyncio
import contextlib
import os
import re
import signal
import ssl
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

import moorage
from moorage.gateway.listening import ignore_newcomers
from tests.process.gateway.support import (
    OK,
    Client,
    EngineSide,
    RawEngine,
    address,
    always,
    chat,
    get,
    mock,
    model,
    post,
    serving,
)
from tests.process.gateway.test_gateway_tls import certificate
from tests.support.eventually import PATIENCE, eventually


@dataclass
class Process:
    process: asyncio.subprocess.Process
    public: tuple[str, int] = ("", 0)
    admin: tuple[str, int] = ("", 0)
    log: str = ""

    async def follow(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.log += line.decode()
            found = re.search(r"serving on (\S+):(\d+), admin on (\S+):(\d+)", self.log)
            if found and not self.public[1]:
                self.public, self.admin = (found[1], int(found[2])), (found[3], int(found[4]))

    async def ended(self, limit: float = PATIENCE) -> int:
        async with asyncio.timeout(limit):
            return await self.process.wait()

    async def ready(self) -> int:
        async with Client.connected(self.admin) as client:
            await client.send(get("/readyz"))
            return (await client.reply()).status


@contextlib.asynccontextmanager
async def command(routes: Path | None, *options: str, listen: str = "127.0.0.1:0") -> AsyncIterator[Process]:
    """`moorage gateway`, serving or ended; without `routes` the options say where the table comes from."""
    words = ["gateway", "--listen", listen, "--admin", "127.0.0.1:0", *options]
    words += ["--routes", str(routes)] if routes else []
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "moorage", *words,
        env={**os.environ, "PYTHONPATH": str(Path(moorage.__file__).parents[1])},
        stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    process = Process(started)
    following = asyncio.create_task(process.follow())
    try:
        await eventually(lambda: process.public[1] or started.returncode is not None, what="a gateway that serves")
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            started.kill()
        await started.wait()
        await following


def routes(path: Path, engine: RawEngine) -> Path:
    file = path / "routes.yaml"
    file.write_text(yaml.safe_dump({"models": [{"name": "m", "endpoints": [address(engine)]}]}))
    return file


async def test_it_serves_and_ends_at_once_when_there_is_nothing_to_drain(tmp_path):
    async with mock() as engine, command(routes(tmp_path, engine), "--drain-delay", "0") as gateway:
        async with Client.connected(gateway.public) as client:
            assert (await client.ask(chat(max_tokens=2))).status == 200
            assert await gateway.ready() == 200
            gateway.process.send_signal(signal.SIGTERM)
            assert await gateway.ended() == 0
            assert await client.closed() == b"", "an idle connection is closed"
        assert "Traceback" not in gateway.log


async def test_sigterm_fails_no_request(tmp_path):
    """Not ready at once, still serving for a moment, then the end when the last stream is over."""
    release = asyncio.Event()

    async def script(side: EngineSide) -> None:
        await side.request()
        await side.start_events()
        await side.event({"choices": [{"delta": {"content": "a"}}]})
        await release.wait()
        await side.end_events()

    async with RawEngine(script) as engine, command(routes(tmp_path, engine), "--drain-delay", "4") as gateway:
        async with Client.connected(gateway.public) as stream, Client.connected(gateway.public) as idle:
            await stream.post(chat(stream=True))
            await stream.head()
            gateway.process.send_signal(signal.SIGTERM)
            await eventually(lambda: "draining" in gateway.log)
            assert await gateway.ready() == 503
            async with Client.connected(gateway.public) as late:
                reply = await late.ask(chat("nope"))
                assert (reply.status, reply.headers["connection"]) == (404, "close")
            assert await idle.closed() == b""
            with pytest.raises(ConnectionError):
                async with Client.connected(gateway.public):
                    pass
            assert gateway.process.returncode is None, "a stream is still under way"
            release.set()
            assert b'"a"' in await stream.chunk()
            assert await stream.chunk() == b"data: [DONE]\n\n"
            assert await stream.chunk() == b""
            assert await gateway.ended() == 0
        assert "0 requests left" in gateway.log


async def test_the_grace_period_is_the_end_of_every_stream(tmp_path):
    async def script(side: EngineSide) -> None:
        await side.request()
        await side.start_events()
        await side.event({"choices": []})
        await side.gone()

    options = ("--drain-delay", "0", "--grace-period", "6")
    async with RawEngine(script) as engine:
        file = routes(tmp_path, engine)
        file.write_text(file.read_text() + "- {name: asleep, endpoints: []}\n")
        async with (
            command(file, *options) as gateway,
            Client.connected(gateway.public) as client,
            Client.connected(gateway.public) as waiter,
        ):
            await client.post(chat(stream=True))
            await waiter.post(chat("asleep"))
            await client.head()
            began = time.monotonic()
            gateway.process.send_signal(signal.SIGTERM)
            assert await gateway.ended() == 0
            assert 0.9 < time.monotonic() - began < 5.9, "five seconds of the six are kept in reserve"
            reply = await waiter.reply()
            assert (reply.status, reply.error["code"]) == (503, "shutting_down")
            assert b'"shutting_down"' in await client.closed()
        await eventually(lambda: engine.sides[0].gone_at)


async def test_load_during_the_whole_end_meets_no_failure(tmp_path):
    """Who gets a connection gets answers; the only failure that a client may meet is that it gets none."""
    async with mock() as engine, command(routes(tmp_path, engine), "--drain-delay", "0.5") as gateway:
        replies = []

        async def load(requests: int) -> None:
            while True:
                try:
                    async with Client.connected(gateway.public) as client:
                        for _ in range(requests):
                            replies.append(await client.ask(chat(stream=True, max_tokens=3)))
                            if replies[-1].headers.get("connection") == "close":
                                break
                except ConnectionRefusedError:
                    return

        loads = [asyncio.create_task(load(requests)) for requests in (1, 5) for _ in range(20)]
        await eventually(lambda: len(replies) > 100)
        gateway.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*loads)
        assert {(reply.status, reply.whole) for reply in replies} == {(200, True)}
        assert await gateway.ended() == 0


async def test_who_comes_while_the_door_closes_is_refused_and_never_taken_and_then_reset():
    """Without the filter the kernel would take them, and reset them when the socket closes."""
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    where = server.sockets[0].getsockname()
    async with Client.connected(where):
        ignore_newcomers(server)
        late = asyncio.create_task(asyncio.open_connection(*where))
        await asyncio.sleep(0.2)  # loopback needs a thousandth of that
        assert not late.done()
        server.close()
        with pytest.raises(ConnectionRefusedError):
            await late


async def test_a_request_that_is_half_sent_is_waited_for(tmp_path):
    async with mock() as engine, command(routes(tmp_path, engine), "--drain-delay", "0.3") as gateway:
        async with Client.connected(gateway.public) as uploading:
            request = post(chat(max_tokens=2, text="x" * 10_000))
            await uploading.send(request[:5000])
            gateway.process.send_signal(signal.SIGTERM)
            await eventually(lambda: "no more connections" in gateway.log)
            with pytest.raises(ConnectionRefusedError):
                async with Client.connected(gateway.public):
                    pass
            await uploading.send(request[5000:])
            assert (await uploading.reply()).status == 200
        assert await gateway.ended() == 0


async def test_a_connection_that_was_just_made_is_given_time_for_its_first_request():
    """In this process, where nobody who is busy can make the time that is given too short."""
    async with RawEngine(always(OK)) as engine, serving([model("m", engine)], drain_quiet=30.0) as bed:
        async with bed.client() as late, bed.client() as other:
            assert (await other.ask(chat())).status == 200
            ending = asyncio.create_task(bed.gateway.drain())
            await eventually(lambda: not bed.gateway._servers[0].is_serving())
            with pytest.raises(ConnectionRefusedError):
                async with bed.client():
                    pass
            assert (await late.ask(chat())).status == 200
        await ending


async def test_a_change_of_the_file_counts_in_the_process_too(tmp_path):
    async with RawEngine(always(OK)) as engine, command(routes(tmp_path, engine)) as gateway:
        file = tmp_path / "routes.yaml"
        table = yaml.safe_load(file.read_text())
        table["aliases"] = [{"name": "chat", "targets": [{"model": "m"}]}]
        file.write_text(yaml.safe_dump(table))
        async with Client.connected(gateway.public) as client:
            deadline = time.monotonic() + PATIENCE
            while (await client.ask(chat("chat"))).status != 200:
                assert time.monotonic() < deadline


@pytest.mark.parametrize("text", ["", "models: 7", None])
async def test_a_routes_file_that_cannot_be_used_is_exit_3(tmp_path, text):
    file = tmp_path / "routes.yaml"
    if text is not None:
        file.write_text(text)
    async with command(file) as gateway:
        assert await gateway.ended() == 3
        await eventually(lambda: "could not start" in gateway.log)
        assert "Traceback" not in gateway.log


async def test_an_address_that_is_taken_is_exit_3(tmp_path):
    async with (
        RawEngine(always(OK)) as engine,
        command(routes(tmp_path, engine), listen=address(engine)) as gateway,
    ):
        assert await gateway.ended() == 3
        await eventually(lambda: "could not start" in gateway.log)


@pytest.mark.parametrize("wrong", ["nowhere", "127.0.0.1:", ":80", "127.0.0.1:99999", "127.0.0.1:x"])
async def test_an_address_that_is_none_is_exit_2(tmp_path, wrong):
    async with command(tmp_path / "routes.yaml", listen=wrong) as gateway:
        assert await gateway.ended() == 2


@pytest.mark.parametrize(
    "options",
    [
        ("--operator", "http://operator"),
        ("--operator", "ftp://operator", "--operator-token-file", "token"),
        ("--operator-token-file", "token"),
        ("--tls-cert", "tls.crt"),
        ("--keys-namespace", "team-a"),
    ],
)
async def test_options_that_make_no_sense_together_are_exit_2(tmp_path, options):
    async with command(tmp_path / "routes.yaml", *options) as gateway:
        assert await gateway.ended() == 2


async def test_https_and_required_keys_as_options(tmp_path):
    made = certificate(tmp_path, "first")
    trust = ssl.create_default_context(cafile=str(made / "tls.crt"))
    options = ("--tls-cert", str(made / "tls.crt"), "--tls-key", str(made / "tls.key"), "--require-keys")
    async with RawEngine(always(OK)) as engine, command(routes(tmp_path, engine), *options) as gateway:
        async with Client.connected(gateway.public, ssl=trust) as client:
            reply = await client.ask(chat())
            assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
        assert await gateway.ready() == 200


async def test_a_certificate_that_cannot_be_used_is_exit_3(tmp_path):
    options = ("--tls-cert", str(tmp_path / "tls.crt"), "--tls-key", str(tmp_path / "tls.key"))
    async with RawEngine(always(OK)) as engine, command(routes(tmp_path, engine), *options) as gateway:
        assert await gateway.ended() == 3
        await eventually(lambda: "could not start: no certificate from" in gateway.log)


@pytest.mark.parametrize(
    ("options", "status", "code"),
    [
        (("--hold-timeout", "0.2"), 504, "hold_timeout"),
        (("--hold-max-pending", "0"), 503, "model_loading"),
    ],
)
async def test_how_requests_wait_for_a_model_by_its_own_name_as_options(tmp_path, options, status, code):
    file = tmp_path / "routes.yaml"
    file.write_text(yaml.safe_dump({"models": [{"name": "qwen3-8b", "endpoints": []}]}))
    async with command(file, *options) as gateway, Client.connected(gateway.public) as client:
        reply = await client.ask(chat("qwen3-8b"))
        assert (reply.status, reply.error["code"]) == (status, code)
