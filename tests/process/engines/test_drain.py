"""The preStop hook of servers: it ends when the engine's own metrics show no request, and not earlier."""

import http.client
import json
import socketserver
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from moorage.engines import llamacpp, vllm
from moorage.engines.drain import drain_command
from tests.support.eventually import PATIENCE
from tests.support.llamaserver import llama_server

pytestmark = pytest.mark.timeout(300)

LLAMA = """\
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 41
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing {}
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred {}
"""
VLLM = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="a"}} {}
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{engine="0",model_name="a"}} {}
"""


class Metrics(socketserver.ThreadingTCPServer):
    """Gives one answer after the other, the last for ever; None: says nothing for as long as it is asked."""

    allow_reuse_address = daemon_threads = True

    def __init__(self, *answers: str | None) -> None:
        self.answers, self.asked = list(answers), 0
        super().__init__(("127.0.0.1", 0), Connection)


class Connection(socketserver.StreamRequestHandler):
    server: Metrics

    def handle(self) -> None:
        assert self.rfile.readline() == b"GET /metrics HTTP/1.0\r\n"
        answer = self.server.answers[min(self.server.asked, len(self.server.answers) - 1)]
        self.server.asked += 1
        if answer is None:
            self.rfile.read()  # until the hook gives up
        else:
            self.wfile.write(b"HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\n" + answer.encode())


@contextmanager
def serving(*answers: str | None) -> Iterator[Metrics]:
    with Metrics(*answers) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


def hook(port: int) -> list[str]:
    """Of both engines at once: their patterns do not meet."""
    patterns = [llamacpp.GAUGES, vllm.GAUGES]
    return list(drain_command(*(p for both in patterns for p in both), port=port, forget=0))


@pytest.mark.parametrize("text", [LLAMA, VLLM], ids=["llama.cpp", "vLLM"])
@pytest.mark.parametrize("busy", [("1", "0"), ("0", "3"), ("2.0", "0.0")])
def test_it_waits_for_requests_that_run_and_that_queue(text: str, busy: tuple[str, str]):
    with serving(text.format(*busy), text.format(*busy), text.format("0", "0.0")) as server:
        subprocess.run(hook(server.server_address[1]), check=True, timeout=PATIENCE)
        assert server.asked == 3


def test_an_engine_that_is_over_is_not_waited_for():
    with serving("") as server:
        port = server.server_address[1]
    subprocess.run(hook(port), check=True, timeout=PATIENCE)


@pytest.mark.parametrize("answer", ["", "not a metric\n", "llamacpp:requests_processing\n"])
def test_one_that_has_no_such_metric_is_not_waited_for(answer: str):
    with serving(answer) as server:
        subprocess.run(hook(server.server_address[1]), check=True, timeout=PATIENCE)
        assert server.asked == 1


def test_one_that_is_too_busy_to_say_so_is_waited_for():
    with serving(None, LLAMA.format(0, 0)) as server:
        subprocess.run(hook(server.server_address[1]), check=True, timeout=PATIENCE)
        assert server.asked == 2


def test_a_real_server_ends_what_it_is_answering():
    with llama_server("--metrics", "--no-slots") as address:
        connection = http.client.HTTPConnection(address, timeout=PATIENCE)
        question = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1500, "stream": True}
        connection.request("POST", "/v1/chat/completions", json.dumps(question | {"ignore_eos": True}))
        answer = connection.getresponse()
        answer.readline()
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(answer.read)
            subprocess.run(hook(int(address.rpartition(":")[2])), check=True, timeout=PATIENCE)
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=PATIENCE) as metrics:
                assert b"llamacpp:requests_processing 0\n" in metrics.read(), "it ended while the server was answering"
            assert reading.result(PATIENCE).endswith(b"data: [DONE]\n\n")
        connection.close()
