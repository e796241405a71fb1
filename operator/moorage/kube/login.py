"""Who we are and where the API server is: a kubeconfig, or the ServiceAccount of our own pod.

All of it comes from `kubernetes.aio.config`, which knows tokens, client certificates, exec plugins and OIDC. Its traps
(37.0.2), and what is done about them here: it logs the failure of an exec plugin and goes on as nobody (refused); a
kubeconfig without a user dies with a TypeError (named); only the in-cluster token is read again by itself (`Session`
logs in again after a 401); with `persist_config` it would write into a person's kubeconfig (never).
"""

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from ssl import SSLContext
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from kubernetes.aio.client import Configuration
from kubernetes.aio.client.rest import RESTClientObject
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config
from yaml import YAMLError

from moorage.errors import MoorageError, Unavailable

_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_DEFAULT_KUBECONFIG = Path("~/.kube/config")


@dataclass(frozen=True)
class Login:
    """One way into one API server.

    `authorization` gives the header of the next request, or None where a client certificate speaks for us; it is asked
    each time because tokens rotate. `namespace` is the one a person means who names none. The files are what
    `ssl_context` was made of, for clients that want to make their own.
    """

    server: str
    ssl_context: SSLContext
    authorization: Callable[[], Awaitable[str | None]]
    namespace: str
    tls_server_name: str | None = None
    proxy: str | None = None
    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None
    verified: bool = True


async def log_in(kubeconfig: Path | None = None, context: str | None = None) -> Login:
    """Read the configuration as kubectl does: the file named, `KUBECONFIG`, `~/.kube/config`, else our pod's account.

    Raises MoorageError with a sentence for a person where none of them works.
    """
    # Configuration() copies a process-wide default that other code may have set; type.__call__ as the library does it.
    configuration = type.__call__(Configuration)
    source = str(kubeconfig) if kubeconfig else _kubeconfig_from_environment()
    try:
        namespace = await _load(configuration, source, context)
        # Go clients do not insist on RFC 5280's letter (an Authority Key Identifier in every CA), Python >= 3.13 does;
        # chain and host name are verified as ever.
        configuration.disable_strict_ssl_verification = True
        ssl_context = RESTClientObject(configuration).ssl_context
    except (ConfigException, OSError, ValueError, TypeError, AttributeError, YAMLError) as error:
        why = " ".join(str(error).split())
        raise MoorageError(f"no way into a cluster by {source or 'the account of this pod'}: {why}") from error
    return Login(
        server=configuration.host.rstrip("/"),
        ssl_context=ssl_context,
        authorization=lambda: _authorization(configuration),
        namespace=namespace,
        tls_server_name=configuration.tls_server_name,
        proxy=configuration.proxy or _proxy_from_environment(configuration.host),
        ca_file=configuration.ssl_ca_cert,
        certificate_file=configuration.cert_file,
        key_file=configuration.key_file,
        verified=configuration.verify_ssl,
    )


async def _load(configuration: Configuration, source: str | None, context: str | None) -> str:
    """Fill `configuration`; returns the default namespace."""
    if source is None:
        load_incluster_config(configuration)
        return _namespace_of_pod()
    loader = await load_kube_config(source, context, configuration, persist_config=False)
    # `_user` is what the library's own refresh_token() looks at; there is no public name for it.
    user = loader._user or {}
    if "exec" in user and "BearerToken" not in configuration.api_key and not configuration.cert_file:
        raise ConfigException(f"the exec plugin {user['exec']['command']!r} gave no credentials")
    return str(loader.current_context["context"].get("namespace") or "default")


def _namespace_of_pod() -> str:
    return _NAMESPACE_FILE.read_text().strip() if _NAMESPACE_FILE.exists() else "default"


def _kubeconfig_from_environment() -> str | None:
    """`KUBECONFIG` (may list several files), or the default file, whichever exists."""
    named = os.environ.get("KUBECONFIG", "")
    if any(Path(part).expanduser().exists() for part in named.split(os.pathsep) if part):
        return named
    default = _DEFAULT_KUBECONFIG.expanduser()
    return str(default) if default.exists() else None


def _proxy_from_environment(server: str) -> str | None:
    """What `HTTPS_PROXY` and `NO_PROXY` say about this server.

    Asked once: aiohttp's `trust_env` asks per request, measured at 0.5 ms of CPU, three times the request itself.
    """
    parts = urlsplit(server)
    if proxy_bypass(parts.hostname or ""):
        return None
    return getproxies().get(parts.scheme)


async def _authorization(configuration: Configuration) -> str | None:
    """The header's value; in a cluster this reads the projected token again once a minute."""
    try:
        value: str | None = await configuration.get_api_key_with_prefix("BearerToken")
    except ConfigException as error:
        raise Unavailable(f"the token of this pod cannot be read: {error}") from error
    return value.strip() if value else None
