"""A few questions to the API server, asked with the standard library alone."""

import json
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Api:
    """An API server as its administrator sees it."""

    server: str
    authority: Path
    token: str

    def get(self, path: str) -> tuple[int, str]:
        """Status code and body of a GET; status 0 when nobody answers."""
        request = urllib.request.Request(self.server + path, headers={"Authorization": f"Bearer {self.token}"})
        try:
            context = ssl.create_default_context(cafile=str(self.authority))
            handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)]
            with urllib.request.build_opener(*handlers).open(request, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def ready(self) -> bool:
        return self.get("/readyz")[0] == 200

    def exists(self, path: str) -> bool:
        return self.get(path)[0] == 200

    def node_ready(self, name: str) -> bool:
        """Does the node say that it is Ready?"""
        status, body = self.get(f"/api/v1/nodes/{name}")
        return status == 200 and condition(json.loads(body), "Ready")


def condition(thing: dict[str, Any], kind: str) -> bool:
    """Is this condition of a Kubernetes object True?"""
    conditions = thing.get("status", {}).get("conditions", [])
    return any(c["type"] == kind and c["status"] == "True" for c in conditions)
