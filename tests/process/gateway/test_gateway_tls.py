"""HTTPS: everything works through it as without, and a renewed certificate cuts nobody off."""

import asyncio
import contextlib
import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from moorage.errors import InvalidSpec
from moorage.gateway.app import Gateway
from moorage.gateway.tls import Certificate
from tests.process.gateway.support import (
    OK,
    QUICK,
    Bed,
    Client,
    EngineSide,
    RawEngine,
    always,
    chat,
    mock,
    model,
)
from tests.support.eventually import PATIENCE, SLACK, eventually


def certificate(folder: Path, name: str) -> Path:
    """A folder with tls.crt and tls.key for 127.0.0.1, called `name`."""
    made = folder / name
    made.mkdir()
    options = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    command = ["openssl", *options.split(), "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-out", str(made / "tls.crt"), "-keyout", str(made / "tls.key")]
    subprocess.run([*command, *files], check=True, capture_output=True)
    return made


def mount(folder: Path, made: Path) -> Path:
    """`folder`/mounted as the kubelet keeps a Secret: links through one link that is swapped whole."""
    mounted = folder / "mounted"
    if not mounted.exists():
        mounted.mkdir()
        for name in ("tls.crt", "tls.key"):
            (mounted / name).symlink_to(Path("..data") / name)
    (mounted / "..new").symlink_to(made)
    (mounted / "..new").rename(mounted / "..data")
    return mounted


class Secure(Bed):
    """A gateway with HTTPS; `trust` is what its clients believe in."""

    trust: ssl.SSLContext

    def client(self, **options):
        return Client.connected(self.gateway.address, ssl=self.trust, **options)

    async def serial(self) -> str:
        """Who the gateway says it is to a new client."""
        async with self.client() as client:
            found = client.writer.get_extra_info("peercert")
            return found["subject"][0][0][1]


@contextlib.asynccontextmanager
async def secure(mounted: Path, models, **changes) -> AsyncIterator[Secure]:
    gateway = Gateway(replace(QUICK, **changes))
    made = Certificate(mounted / "tls.crt", mounted / "tls.key", 0.02)
    bed = Secure(gateway)
    bed.apply(models)
    bed.trust = ssl.create_default_context()
    for path in mounted.parent.glob("*/tls.crt"):
        bed.trust.load_verify_locations(path)
    await gateway.start(("127.0.0.1", 0), ("127.0.0.1", 0), made.context)
    following = asyncio.create_task(made.follow())
    try:
        yield bed
        await eventually(lambda: not bed.outstanding() and not gateway.proxy.fleet.held, PATIENCE)
    finally:
        following.cancel()
        await gateway.stop()


async def test_requests_and_streams_go_through_it(tmp_path):
    mounted = mount(tmp_path, certificate(tmp_path, "first"))
    async with mock() as engine, secure(mounted, [model("m", engine)]) as bed, bed.client() as client:
        assert (await client.ask(chat(text="x" * 200_000))).status == 200
        reply = await client.ask(chat(stream=True, max_tokens=50))
        assert reply.whole
        assert reply.events[-1] == "[DONE]"
        assert (await bed.admin("/healthz")).status == 200, "the admin port stays as it is: probes and scrapers"


async def test_a_client_that_leaves_closes_its_engine(tmp_path):
    async def script(side: EngineSide) -> None:
        await side.request()
        await side.start_events()
        await side.event({"choices": []})
        await side.gone()

    mounted = mount(tmp_path, certificate(tmp_path, "first"))
    async with RawEngine(script) as engine, secure(mounted, [model("m", engine)]) as bed:
        async with bed.client() as client:
            await client.post(chat(stream=True))
            await client.head()
            left = time.monotonic()
        await eventually(lambda: engine.sides[0].gone_at, PATIENCE)
        assert engine.sides[0].gone_at - left < SLACK


async def test_a_slow_client_is_cut_and_its_engine_waits(tmp_path):
    async def script(side: EngineSide) -> None:
        await side.request()
        await side.start_events()
        with contextlib.suppress(ConnectionError):
            while True:
                await side.event(b"data: " + b"x" * 10_000 + b"\n\n")

    mounted = mount(tmp_path, certificate(tmp_path, "first"))
    async with (
        RawEngine(script) as engine,
        secure(mounted, [model("m", engine)], write_timeout=0.5) as bed,
        bed.client() as client,
    ):
        client.writer.transport.pause_reading()
        await client.post(chat(stream=True))
        await eventually(lambda: engine.requests, PATIENCE)
        await eventually(lambda: not bed.outstanding(), PATIENCE, "an engine that was let go")


async def test_a_renewed_certificate_is_for_new_connections_and_cuts_no_old_one(tmp_path, caplog):
    mounted = mount(tmp_path, certificate(tmp_path, "first"))
    second = certificate(tmp_path, "second")
    async with RawEngine(always(OK)) as engine, secure(mounted, [model("m", engine)]) as bed, bed.client() as client:
        assert await bed.serial() == "first"
        assert (await client.ask(chat())).status == 200
        mount(tmp_path, second)
        deadline = time.monotonic() + PATIENCE
        while await bed.serial() != "second":
            assert time.monotonic() < deadline
        assert (await client.ask(chat())).status == 200, "the connection from before"
        assert client.writer.get_extra_info("peercert")["subject"][0][0][1] == "first"


async def test_a_certificate_that_cannot_be_used_changes_nothing(tmp_path, caplog):
    mounted = mount(tmp_path, certificate(tmp_path, "first"))
    broken = certificate(tmp_path, "broken")
    (broken / "tls.key").write_bytes((certificate(tmp_path, "other") / "tls.key").read_bytes())
    async with RawEngine(always(OK)) as engine, secure(mounted, [model("m", engine)]) as bed:
        mount(tmp_path, broken)
        await eventually(lambda: "the last good certificate stays in force" in caplog.text, PATIENCE)
        assert await bed.serial() == "first"
        assert (await bed.ask(chat())).status == 200
        mount(tmp_path, tmp_path / "nowhere")
        assert await bed.serial() == "first"


async def test_plain_http_and_silence_reach_nothing_and_disturb_nobody(tmp_path):
    mounted = mount(tmp_path, certificate(tmp_path, "first"))
    async with (
        RawEngine(always(OK)) as engine,
        secure(mounted, [model("m", engine)], handshake_timeout=3.0) as bed,
        Client.connected(bed.gateway.address) as plain,
        Client.connected(bed.gateway.address) as silent,
    ):
        await plain.send(b"GET /v1/models HTTP/1.1\r\nHost: g\r\n\r\n")
        assert b"200" not in await plain.closed()
        await silent.closed()
        assert (await bed.ask(chat())).status == 200


async def test_old_protocols_are_refused(tmp_path):
    mounted = mount(tmp_path, certificate(tmp_path, "first"))
    async with secure(mounted, []) as bed:
        bed.trust.minimum_version = bed.trust.maximum_version = ssl.TLSVersion.TLSv1_2
        await bed.serial()
        with pytest.warns(DeprecationWarning):
            bed.trust.minimum_version = ssl.TLSVersion.TLSv1_1
            bed.trust.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await bed.serial()


@pytest.mark.parametrize("spoil", ["missing", "empty", "encrypted"])
def test_without_a_usable_certificate_it_does_not_start(spoil, tmp_path):
    made = certificate(tmp_path, "first")
    key = made / "tls.key"
    if spoil == "missing":
        key.unlink()
    elif spoil == "empty":
        key.write_text("")
    else:
        command = [
            "openssl",
            "pkcs8",
            "-topk8",
            "-in",
            str(key),
            "-passout",
            "pass:secret",
            "-out",
            str(tmp_path / "k"),
        ]
        subprocess.run(command, check=True, capture_output=True)
        key.write_bytes((tmp_path / "k").read_bytes())
    with pytest.raises(InvalidSpec, match="no certificate from"):
        Certificate(made / "tls.crt", key, 1)
