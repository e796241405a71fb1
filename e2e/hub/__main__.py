"""Serve a folder of repositories as a Hugging Face-compatible hub.

python -m e2e.hub --root DIR --port 8090 [--cdn-port 8091] [--host 0.0.0.0] [--rules rules.json]
HF_ENDPOINT=http://127.0.0.1:8090 HF_HUB_DISABLE_XET=1 hf download org/name
"""

import argparse
import json
import signal
import threading
from pathlib import Path

from e2e.hub.server import HubServer


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m e2e.hub", description=__doc__.splitlines()[0])
    options.add_argument("--root", required=True, type=Path, help="folder with <org>/<name>/ and perhaps hub.json")
    options.add_argument("--host", default="127.0.0.1")
    options.add_argument("--port", type=int, default=8090)
    options.add_argument("--cdn-port", type=int, default=0, help="default: the port after --port")
    options.add_argument("--rules", type=Path, help="JSON list of faults, see e2e/hub/faults.py")
    options.add_argument("--rate", type=float, default=0, help="bytes/s over all connections")
    options.add_argument("--connection-rate", type=float, default=0, help="bytes/s per connection")
    options.add_argument("--lfs-threshold", type=int, default=10 << 20, help="bytes from which a file is LFS")
    options.add_argument("--page-size", type=int, default=1000, help="tree entries per page")
    options.add_argument("--rescan", type=float, default=2, help="seconds after which a folder is looked at again")
    options.add_argument("--expiry", type=float, default=3600, help="seconds a CDN link lives")
    options.add_argument("--tls-cert", help="PEM chain; with --tls-key both ports speak https")
    options.add_argument("--tls-key")
    asked = options.parse_args()
    hub = HubServer(
        asked.root,
        host=asked.host,
        port=asked.port,
        cdn_port=asked.cdn_port or (asked.port + 1 if asked.port else 0),
        rate=asked.rate,
        connection_rate=asked.connection_rate,
        lfs_threshold=asked.lfs_threshold,
        page_size=asked.page_size,
        expiry=asked.expiry,
        tls=(asked.tls_cert, asked.tls_key) if asked.tls_cert else None,
        rescan=asked.rescan,
    )
    if asked.rules:
        hub.rules.replace(json.loads(asked.rules.read_text()))
    done = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: done.set())
    with hub:
        print(json.dumps({"url": hub.url, "cdn": hub.cdn_url}), flush=True)
        done.wait()


if __name__ == "__main__":
    main()
