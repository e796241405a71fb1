"""Keys, certificates and tokens of one cluster, made by openssl when it starts and gone with it."""

import secrets
import subprocess
from pathlib import Path

from .errors import ClusterError

# user -> group, as Kubernetes' own RBAC bootstrap policy expects them ("" = none needed).
USERS = {
    "admin": "system:masters",
    "kwok": "system:masters",
    "system:kube-controller-manager": "",
    "system:kube-scheduler": "",
    "system:kube-proxy": "",
    "system:coredns": "",
    "system:netpol": "",
    "system:provisioner": "",
}


def make(folder: Path, *, addresses: list[str], node: str) -> dict[str, str]:
    """Write certificates and the token file into `folder`; returns user -> token.

    addresses: IP addresses under which the API server is reached.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _authority(folder)
    names = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ]
    subject_names = ",".join([*(f"DNS:{name}" for name in names), *(f"IP:{address}" for address in addresses)])
    _certificate(folder, "apiserver", "/CN=kube-apiserver", "serverAuth", subject_names)
    _certificate(folder, "kubelet-client", "/O=system:masters/CN=kube-apiserver", "clientAuth")
    _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(folder / "sa.key"))
    return _tokens(folder, USERS | {f"system:node:{node}": "system:nodes"})


def _authority(folder: Path) -> None:
    key, certificate = str(folder / "ca.key"), str(folder / "ca.crt")
    _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key)
    # Key identifiers and usages are written out: Python from 3.13 on refuses a chain without (VERIFY_X509_STRICT).
    _openssl(
        *(
            "req",
            "-x509",
            "-new",
            "-key",
            key,
            "-days",
            "3650",
            "-subj",
            "/CN=moorage-test-cluster",
            "-out",
            certificate,
        ),
        *("-addext", "keyUsage=critical,keyCertSign,cRLSign", "-addext", "subjectKeyIdentifier=hash"),
    )


def _certificate(folder: Path, name: str, subject: str, usage: str, subject_names: str = "") -> None:
    key, request, certificate = (str(folder / f"{name}.{end}") for end in ("key", "csr", "crt"))
    extensions = [
        "basicConstraints=critical,CA:false",
        "keyUsage=critical,digitalSignature",
        f"extendedKeyUsage={usage}",
        "subjectKeyIdentifier=hash",
        "authorityKeyIdentifier=keyid",
        *([f"subjectAltName={subject_names}"] if subject_names else []),
    ]
    extension_file = folder / f"{name}.ext"
    extension_file.write_text("\n".join(extensions) + "\n")
    _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key)
    _openssl("req", "-new", "-key", key, "-subj", subject, "-out", request)
    _openssl(
        *("x509", "-req", "-in", request, "-days", "3650", "-extfile", str(extension_file), "-out", certificate),
        *("-CA", str(folder / "ca.crt"), "-CAkey", str(folder / "ca.key"), "-set_serial", str(secrets.randbits(64))),
    )


def _tokens(folder: Path, users: dict[str, str]) -> dict[str, str]:
    tokens = {user: secrets.token_hex(16) for user in users}
    lines = [f'{tokens[user]},{user},{user},"{group}"' for user, group in users.items()]
    file = folder / "tokens.csv"
    file.touch(mode=0o600)
    file.write_text("\n".join(lines) + "\n")
    return tokens


def _openssl(*arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ClusterError(f"openssl {arguments[0]} failed: {done.stderr.strip()}")
