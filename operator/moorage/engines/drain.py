"""How a server ends what it is answering before it stops: a command for its container's preStop hook.

Both engines would cut their answers on SIGTERM. (llama-server b11669 never ends those that it does not stream; vLLM
0.32 has `--shutdown-timeout`, but on CPUs takes all of it with nothing to do, seen: 17 of 20 s.) So they are told to
stop only when their own metrics show no request. The hook is written for bash, which the images of both have.
"""

from moorage import names

FORGET_SECONDS = 3
"""Before anything else: by then the gateways and the nodes send the server nothing new."""
DRAIN_SECONDS = 120
"""How long a server that is to stop may take to end what it is answering."""


def drain_command(*gauges: str, port: int = names.ENGINE_PORT, forget: int = FORGET_SECONDS) -> tuple[str, ...]:
    """Waits `forget` seconds, then until each of `gauges` (shell patterns of Prometheus series) is 0, or DRAIN_SECONDS.

    A server that takes no connection has ended; one that says nothing for ten seconds (`read` gives up: above 128) is
    deep in a prompt.
    """
    script = f"""\
sleep {forget}
busy() {{
  exec 3<>/dev/tcp/127.0.0.1/{port} || return 1
  printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3
  while read -r -t 10 name value; got=$?; [ $got = 0 ]; do
    case $name in {" | ".join(gauges)}) [[ $value =~ ^[0.]*$ ]] || return 0 ;; esac
  done <&3
  [ $got -gt 128 ]
}}
while [ $SECONDS -lt {forget + DRAIN_SECONDS} ] && busy 2>/dev/null; do sleep 0.5; done
"""
    return "bash", "-c", script
