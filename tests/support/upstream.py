"""A way to a real API server from its kubeconfig, without the client under test."""

import base64
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp
import yaml


@dataclass(frozen=True)
class Upstream:
    """Cluster and user of a kubeconfig's current context; relative paths in it are relative to `base`."""

    cluster: dict[str, Any]
    user: dict[str, Any]
    base: Path

    @classmethod
    def read(cls, kubeconfig: Path) -> Self:
        config = yaml.safe_load(kubeconfig.read_text())
        context = next(c["context"] for c in config["contexts"] if c["name"] == config["current-context"])
        cluster = next(c["cluster"] for c in config["clusters"] if c["name"] == context["cluster"])
        user: dict[str, Any] = next((u["user"] for u in config["users"] if u["name"] == context.get("user")), {})
        return cls(cluster, user, kubeconfig.parent)

    @property
    def server(self) -> str:
        url: str = self.cluster["server"]
        return url.rstrip("/")

    def session(self, *, anonymous: bool = False) -> aiohttp.ClientSession:
        """A session as the kubeconfig's user, or as nobody (for requests that bring their own token)."""
        user = {} if anonymous else self.user
        headers = {"Authorization": f"Bearer {user['token']}"} if "token" in user else {}
        connector = aiohttp.TCPConnector(ssl=self._ssl_context(user), limit=0)
        return aiohttp.ClientSession(connector=connector, headers=headers, timeout=aiohttp.ClientTimeout(total=None))

    def _ssl_context(self, user: dict[str, Any]) -> ssl.SSLContext | bool:
        if not self.server.startswith("https"):
            return True
        context = ssl.create_default_context(cadata=self._pem(self.cluster, "certificate-authority"))
        certificate = self._pem(user, "client-certificate")
        if certificate is not None:
            with tempfile.NamedTemporaryFile("w", suffix=".pem") as both:
                both.write(certificate + (self._pem(user, "client-key") or ""))
                both.flush()
                context.load_cert_chain(both.name)
        return context

    def _pem(self, section: dict[str, Any], name: str) -> str | None:
        if f"{name}-data" in section:
            return base64.b64decode(section[f"{name}-data"]).decode()
        return (self.base / section[name]).read_text() if name in section else None
