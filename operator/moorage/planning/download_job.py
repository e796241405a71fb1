"""The Job of a ModelDownload seen from planning: its arguments, and what its pods reported."""

import json
from typing import Any

from moorage import names
from moorage.api.common import duration_seconds, quantity_bytes
from moorage.api.download import ModelDownload
from moorage.manifests.download import CONTAINER, DownloadJob, TokenRef
from moorage.planning.types import Defaults, Manifest

_GIB = 1024**3
_MIB = 1024**2
_ROOM_FACTOR = 1.05
_ROOM_BYTES = 256 * _MIB
CA_FILE = "/etc/moorage/ca/ca.crt"
HEADER_FILE = "/etc/moorage/headers/headers"


def claim_bytes(total_bytes: int) -> int:
    """Size of a claim for `total_bytes` of files, in whole GiB: 5 % and 256 MiB of room for sidecars and such."""
    wanted = int(total_bytes * _ROOM_FACTOR) + _ROOM_BYTES
    return -(-wanted // _GIB) * _GIB


def quantity(bytes_: int) -> str:
    """Whole GiB as a quantity: quotas and `kubectl get pvc` repeat it as it is written."""
    return f"{bytes_ // _GIB}Gi"


def directory(download: ModelDownload) -> str:
    """The folder of the claim that this download writes; every content has its own."""
    return names.download_child(download.metadata.name)


def content_path(download: ModelDownload, commit: str) -> str:
    """Where the verified files lie, relative to the claim's root; for a pre-filled claim wherever the spec says."""
    prefilled = download.spec.source.persistent_volume_claim
    if prefilled:
        return prefilled.path or ""
    return f"{directory(download)}/{commit}"


def arguments(download: ModelDownload, commit: str, defaults: Defaults, files: list[str]) -> tuple[str, ...]:
    """Arguments of `moorage download` for the resolved `commit` (for http: the file's sha256) and its `files`.

    Without `files` (they are more than a status holds) it goes by the source's patterns.
    """
    spec = download.spec
    if spec.source.persistent_volume_claim:
        path = f"{names.MODEL_MOUNT}/{content_path(download, commit)}".rstrip("/")
        how = ("--verify", spec.verify.lower(), "--status-port", str(names.PROGRESS_PORT))
        return ("--inspect", path, *how)
    common = [
        *("--dest", f"{names.MODEL_MOUNT}/{directory(download)}"),
        *("--connections", str(spec.connections)),
        *("--verify", spec.verify.lower()),
        *("--stall-timeout", str(round(duration_seconds(spec.retry.stall_timeout)))),
        *("--retries", str(spec.retry.attempts_without_progress)),
        *("--status-port", str(names.PROGRESS_PORT)),
    ]
    if spec.bandwidth_limit:
        common += ["--bandwidth-limit", str(quantity_bytes(spec.bandwidth_limit))]
    if _ca_bundle(download):
        common += ["--ca-file", CA_FILE]
    common += [part for host in defaults.allowed_hosts for part in ("--allow-host", host)]
    common += [part for network in defaults.denied_networks for part in ("--deny-network", network)]
    if defaults.allow_loopback:
        common.append("--allow-loopback")
    return (*_what(download, commit, defaults, files), *common)


def _what(download: ModelDownload, commit: str, defaults: Defaults, files: list[str]) -> list[str]:
    hub, http = download.spec.source.hugging_face, download.spec.source.http
    if http:
        args = ["--url", http.url, "--sha256", http.sha256.lower()]
        args += ["--header-file", HEADER_FILE] if http.headers_secret_ref else []
        return [*args, "--file-name", http.file_name] if http.file_name else args
    assert hub is not None
    args = ["--endpoint", hub.endpoint or defaults.huggingface_endpoint, "--repo", hub.repo, "--revision", commit]
    if chosen := download.spec.files or files:
        return args + [part for path in chosen for part in ("--file", path)]
    for glob in hub.include or ["*"]:
        args += ["--include", glob]
    for glob in hub.exclude:
        args += ["--exclude", glob]
    return args


def _ca_bundle(download: ModelDownload) -> TokenRef | None:
    source = download.spec.source.hugging_face or download.spec.source.http
    ca = source.ca_bundle_ref if source else None
    return TokenRef(ca.name, ca.key) if ca else None


def build(download: ModelDownload, commit: str, claim: str, defaults: Defaults, files: list[str]) -> DownloadJob:
    """Everything the manifest of the Job needs; `inputs` changes when what is fetched changes."""
    hub = download.spec.source.hugging_face
    secret = hub.token_secret_ref if hub else None
    headers = download.spec.source.http.headers_secret_ref if download.spec.source.http else None
    args = arguments(download, commit, defaults, files)
    return DownloadJob(
        image=defaults.moorage_image,
        args=args,
        claim=claim,
        inputs=names.digest([_wanted(download, commit), claim, download.metadata.annotations.get(names.VERIFY_AT)]),
        read_only=download.spec.source.persistent_volume_claim is not None,
        token=TokenRef(secret.name, secret.key) if secret else None,
        headers=TokenRef(headers.name, headers.key) if headers else None,
        ca_bundle=_ca_bundle(download),
        pull_secrets=defaults.image_pull_secrets,
        env=defaults.proxy_env,
    )


def _wanted(download: ModelDownload, commit: str) -> list[Any]:
    """What a Job fetches; how (connections, hosts, image) may change without stopping one that runs."""
    return [download.spec.source.identity(), download.spec.files, download.spec.verify, commit]


def result(pods: tuple[Manifest, ...], job: Manifest) -> dict[str, Any] | None:
    """What the newest finished pod of `job` reported: the JSON of its termination message and its exit code.

    None where no pod of the Job is left or none has finished. A message that is not our JSON (a container killed before
    it could write) becomes `reason` with the container's own reason.
    """
    finished = []
    for pod in pods:
        if pod.get("owner") != job["uid"]:
            continue
        for container in pod.get("containers", ()):
            ended = container.get("terminated")
            if container["name"] == CONTAINER and ended:
                finished.append((ended.get("finishedAt") or "", ended))
    if not finished:
        return None
    _, ended = max(finished, key=lambda f: f[0])
    return _report(ended)


# What a report holds; anything else under these names is not from our program, and left out.
_REPORT: dict[str, type] = {
    **dict.fromkeys(("reason", "message", "file", "commit", "revision", "manifestDigest", "folder"), str),
    **dict.fromkeys(("bytes", "fileCount"), int),
    **dict.fromkeys(("facts", "faults"), dict),
}


def _report(ended: dict[str, Any]) -> dict[str, Any]:
    code = ended.get("exitCode", -1)
    text = (ended.get("message") or "").strip()
    try:
        report = json.loads(text.splitlines()[-1]) if text else None
    except ValueError:
        report = None
    if isinstance(report, dict) and isinstance(report.get("reason"), str):
        known = {k: v for k, v in report.items() if isinstance(v, _REPORT.get(k, object)) and v is not False}
        return {"message": "", **known, "exitCode": code}
    if ended.get("reason") == "OOMKilled":
        return {"reason": "OutOfMemory", "message": "the download was killed for lack of memory", "exitCode": code}
    return {"reason": "InternalError", "message": text[-400:] or f"the download exited with {code}", "exitCode": code}
