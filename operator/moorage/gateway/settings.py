"""The gateway's limits and time-outs, all in one place so that a test can shorten any of them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Sizes are in bytes, times in seconds. The defaults are the contract's where it names a number."""

    # Clients.
    max_connections: int = 10_000
    max_head_bytes: int = 64 << 10
    max_headers: int = 100
    max_body_bytes: int = 32 << 20
    # Commas and brackets in bodies over 1 MiB: `[[],[],...` would otherwise cost 30 times its size in objects.
    max_json_marks: int = 2_000_000
    # Of all requests that are not answered yet; beyond that large ones are refused. What is parsed takes several times
    # its size, and the pod has 512 MiB.
    max_held_bytes: int = 96 << 20
    head_timeout: float = 75.0  # for a whole request head; also how long a connection may stay idle
    body_timeout: float = 30.0
    write_timeout: float = 60.0  # for a client that takes nothing of an answer
    handshake_timeout: float = 10.0  # of TLS
    linger_timeout: float = 5.0  # how long a refused upload is read on, so that the client sees the refusal

    # Engines.
    connect_timeout: float = 5.0
    first_byte_timeout: float = 600.0
    silence_timeout: float = 300.0  # between two pieces of an answer
    # vLLM (uvicorn) and llama-server (cpp-httplib) close an idle connection after 5 s; we must be first.
    engine_idle_timeout: float = 4.0
    retries: int = 2
    avoid_seconds: float = 2.0  # an endpoint that could not be reached is the last choice for this long
    # A whole answer up to this size is passed on when it is complete, so that an engine's death is still a clean 502.
    answer_buffer_bytes: int = 256 << 10

    # Requests that wait for a Model. Aliases bring their own limits; these are for Models called by their own name.
    hold_max_pending: int = 100
    hold_timeout: float = 300.0
    hold_keepalive: float = 0.0  # SSE comments to waiting streams this often; commits status 200, so off unless asked
    retry_after: int = 5  # what a refused client is told
    retry_after_blocked: int = 30  # the same where a person has to do something first

    # The end. Kubernetes goes on sending for a moment after SIGTERM; `grace_period` is what the pod gets in all.
    drain_delay: float = 5.0
    last_handshakes: float = 0.2  # what has begun to connect when nobody else is let in has this long to get through
    drain_quiet: float = 1.0  # a connection that is idle for a shorter time may have a request on its way
    grace_period: float = 300.0
    grace_reserve: float = 5.0
    last_report_timeout: float = 2.0  # what of the reserve the operator has to take the last usage report

    routes_poll: float = 0.02
    certificate_poll: float = 1.0

    @property
    def sweep_interval(self) -> float:
        """How often time-outs are looked at: one timer for all connections instead of one for each request."""
        shortest = min(
            self.head_timeout,
            self.body_timeout,
            self.write_timeout,
            self.linger_timeout,
            self.first_byte_timeout,
            self.silence_timeout,
            self.engine_idle_timeout,
        )
        return max(0.005, min(0.5, shortest / 8))
