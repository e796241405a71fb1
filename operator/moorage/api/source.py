"""Where a model's files come from and where they go: the parts that Model and ModelDownload share."""

from enum import StrEnum
from itertools import combinations
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from moorage.api.common import (
    Duration,
    Extension,
    ObjectName,
    Quantity,
    RelativePath,
    Rule,
    SpecPart,
    camel,
)

# scheme://host[:port]/path without user:password@ before the host.
_URL = "self.matches('^https?://[^/?#@\\\\s]+([/?#][^\\\\s]*)?$')"

Url = Annotated[
    str,
    Field(min_length=8, max_length=2048),
    Rule(
        _URL,
        "write a URL that starts with https:// or http:// and carries no user name or password; "
        "credentials belong in a Secret",
    ),
]

# A file pattern as huggingface_hub's allow_patterns: fnmatch over the whole path, `*` crosses `/`.
Glob = Annotated[
    str,
    Field(min_length=1, max_length=256),
    Rule(
        "!self.startsWith('/') && !self.contains('..')",
        "write a pattern over paths inside the repository, such as '*.gguf', without a leading '/' and without '..'",
    ),
]

Globs = Annotated[list[Glob], Field(max_length=32)]


class Layout(StrEnum):
    """How files lie in a pre-filled volume."""

    PLAIN = "Plain"
    HUGGING_FACE_CACHE = "HuggingFaceCache"


class AccessMode(StrEnum):
    """Access modes of a claim, as in core/v1."""

    READ_WRITE_ONCE = "ReadWriteOnce"
    READ_ONLY_MANY = "ReadOnlyMany"
    READ_WRITE_MANY = "ReadWriteMany"


class ReclaimPolicy(StrEnum):
    """What happens to the files when nobody uses them any more."""

    DELETE = "Delete"
    RETAIN = "Retain"


class TokenSecretRef(SpecPart):
    """A Secret of the same namespace that holds an access token."""

    name: ObjectName = Field(description="Name of the Secret.")
    key: str = Field(default="token", min_length=1, max_length=253, description="Key of the token in the Secret.")


class CaBundleRef(SpecPart):
    """A ConfigMap of the same namespace that holds certificates in PEM form."""

    name: ObjectName = Field(description="Name of the ConfigMap.")
    key: str = Field(
        default="ca.crt", min_length=1, max_length=253, description="Key of the PEM file in the ConfigMap."
    )


class HuggingFaceSource(SpecPart):
    """A repository on the Hugging Face hub or a mirror of it."""

    repo: Annotated[
        str,
        Field(min_length=1, max_length=193),
        Rule(
            "self.matches('^([A-Za-z0-9][A-Za-z0-9._-]{0,95}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,95}$') "
            "&& !self.contains('..') && !self.contains('--')",
            "write the repository as ORGANISATION/NAME, such as Qwen/Qwen3-8B-GGUF, without a URL before it",
        ),
    ] = Field(description="Repository as ORGANISATION/NAME, such as Qwen/Qwen3-8B-GGUF.")
    revision: Annotated[
        str,
        Field(min_length=1, max_length=255),
        Rule(
            "self.matches('^[A-Za-z0-9_][A-Za-z0-9._/-]*$') && !self.contains('..')",
            "write the revision as a branch, a tag or a 40-digit commit of the repository",
        ),
    ] = Field(
        default="main",
        description="Branch, tag or commit. A branch is resolved to a commit once; the annotation "
        "moorage.dev/refresh-at resolves it again.",
    )
    include: Globs = Field(
        default=[],
        description="Patterns of the files to take; '*' also matches '/'. Absent: what the engine needs.",
    )
    exclude: Globs = Field(default=[], description="Patterns of files to leave out, stronger than include.")
    quantization: (
        Annotated[
            str,
            Field(min_length=1, max_length=32),
            Rule(
                "self.matches('^[A-Za-z0-9][A-Za-z0-9._-]*$')",
                "write the quantization as it stands in the file names, such as Q4_K_M",
            ),
        ]
        | None
    ) = Field(
        default=None,
        description="Which quantization of a GGUF repository to serve, as it stands in the file names, such as Q4_K_M.",
    )
    endpoint: Url | None = Field(
        default=None,
        description="URL of a mirror or private hub. Absent: the chart's setting, https://huggingface.co by default.",
    )
    token_secret_ref: TokenSecretRef | None = Field(
        default=None,
        description="Secret with the token for a private or gated repository. The token goes to the endpoint only.",
    )
    ca_bundle_ref: CaBundleRef | None = Field(
        default=None,
        description="ConfigMap with the certificates to trust for the endpoint, for example a company's own.",
    )


class HeadersSecretRef(SpecPart):
    """A Secret of the same namespace that holds request headers."""

    name: ObjectName = Field(description="Name of the Secret.")
    key: str = Field(
        default="headers",
        min_length=1,
        max_length=253,
        description="Key of the headers in the Secret: one 'Name: value' on each line.",
    )


class HttpSource(SpecPart):
    """One file behind a plain URL."""

    rules: ClassVar = (
        Rule(
            "has(self.fileName) || self.url.matches('^[^?#]*://[^/?#]+/([^?#]*/)?[^/?#]+([?#].*)?$')",
            "the path of url ends in no file name; write the name in fileName",
        ),
    )

    url: Url = Field(description="Address of the file; https:// or http://. Redirects are followed to allowed hosts.")
    sha256: Annotated[
        str,
        Field(min_length=1, max_length=128),
        Rule(
            "self.matches('^[0-9A-Fa-f]{64}$')",
            "write the file's SHA-256 as 64 hexadecimal digits, as `sha256sum FILE` prints it",
        ),
    ] = Field(
        description="SHA-256 of the file, 64 hexadecimal digits. It stands for the revision and is always checked."
    )
    file_name: (
        Annotated[
            str,
            Field(min_length=1, max_length=255),
            Rule(
                "self.matches('^[^/\\\\\\\\]+$') && self != '.' && self != '..'",
                "write a bare file name such as model.gguf, without folders",
            ),
        ]
        | None
    ) = Field(default=None, description="Name of the file in the volume. Absent: the last part of the URL's path.")
    headers_secret_ref: HeadersSecretRef | None = Field(
        default=None,
        description="Secret with request headers, such as 'Authorization: Bearer ...'. They go to the URL's own host "
        "only, never along a redirect to another.",
    )
    ca_bundle_ref: CaBundleRef | None = Field(
        default=None, description="ConfigMap with the certificates to trust for this URL, for example a company's own."
    )


class PersistentVolumeClaimSource(SpecPart):
    """Files that already lie in a volume. Moorage reads them and never writes or deletes there."""

    claim_name: ObjectName = Field(description="Name of a PersistentVolumeClaim of the same namespace.")
    path: RelativePath | None = Field(
        default=None,
        description="File or folder inside the volume, relative to its root. Absent: the root.",
    )
    layout: Layout = Field(
        default=Layout.PLAIN,
        description="Plain: the files lie in path. HuggingFaceCache: path is a cache folder (hub/models--...) as "
        "huggingface_hub writes it.",
    )


class DownloadRef(SpecPart):
    """A ModelDownload of the same namespace."""

    name: ObjectName = Field(description="Name of the ModelDownload.")


def exactly_one(where: str, fields: tuple[str, ...]) -> tuple[Rule, ...]:
    """The rules that one and only one of `fields` is set.

    One for none and one per pair, so that the message names what was given: a computed message would need a bound that
    the API server cannot see, and it refuses such a CRD for its cost.
    """
    any_of = " || ".join(f"has(self.{field})" for field in fields)
    missing = Rule(any_of, f"{where} is empty; it needs exactly one of {', '.join(fields)}")
    pairs = tuple(
        Rule(
            f"!(has(self.{one}) && has(self.{other}))",
            f"{where} has both {one} and {other}; keep exactly one of {', '.join(fields)}",
        )
        for one, other in combinations(fields, 2)
    )
    return (missing, *pairs)


class _Source(SpecPart):
    """Base of the two sources: exactly one field is set."""

    @model_validator(mode="after")
    def _one(self) -> "_Source":
        fields = type(self).model_fields
        given = [camel(name) for name in fields if getattr(self, name) is not None]
        if len(given) != 1:
            choices = ", ".join(camel(name) for name in fields)
            raise ValueError(f"needs exactly one of {choices}; given: {', '.join(given) or 'none'}")
        return self


class DownloadSource(_Source):
    """Where the files come from; exactly one of the fields."""

    rules: ClassVar = exactly_one("spec.source", ("huggingFace", "http", "persistentVolumeClaim"))

    hugging_face: HuggingFaceSource | None = Field(
        default=None, description="A repository on the Hugging Face hub or a mirror of it."
    )
    http: HttpSource | None = Field(default=None, description="One file behind a plain URL, with its SHA-256.")
    persistent_volume_claim: PersistentVolumeClaimSource | None = Field(
        default=None, description="Files that already lie in a volume; nothing is downloaded."
    )

    @property
    def secrets(self) -> tuple[str, ...]:
        """Names of the Secrets that it names."""
        token = self.hugging_face.token_secret_ref if self.hugging_face else None
        headers = self.http.headers_secret_ref if self.http else None
        return tuple(ref.name for ref in (token, headers) if ref)

    @property
    def config_maps(self) -> tuple[str, ...]:
        """Names of the ConfigMaps that it names."""
        remote = self.hugging_face or self.http
        return (remote.ca_bundle_ref.name,) if remote and remote.ca_bundle_ref else ()


class ModelSource(DownloadSource):
    """Where the model's files come from; exactly one of the fields."""

    rules: ClassVar = exactly_one("spec.source", ("huggingFace", "http", "persistentVolumeClaim", "downloadRef"))

    download_ref: DownloadRef | None = Field(
        default=None, description="A ModelDownload that a person made; its files are served."
    )


class Storage(SpecPart):
    """The volume that the files are downloaded to."""

    rules: ClassVar = (
        Rule(
            "!has(self.claimName) || (!has(self.size) && !has(self.storageClassName))",
            "spec.storage.claimName names a claim that exists, so size and storageClassName have no effect; "
            "remove them, or remove claimName to have a claim made",
        ),
        Rule(
            "!has(self.claimName) || self.accessModes == ['ReadWriteOnce']",
            "spec.storage.accessModes is for a claim that Moorage makes; with claimName leave it out",
        ),
        Rule(
            "self.accessModes.exists(mode, mode != 'ReadOnlyMany')",
            "spec.storage.accessModes needs ReadWriteOnce or ReadWriteMany, because the files have to be written once",
        ),
    )

    claim_name: ObjectName | None = Field(
        default=None,
        description="A PersistentVolumeClaim of this namespace to download into. Absent: one is made for these files.",
    )
    size: Quantity | None = Field(
        default=None,
        description="Size of the claim that is made, such as 20Gi. Absent: what the files need and some room.",
    )
    storage_class_name: (
        Annotated[
            str,
            Field(min_length=1, max_length=253),
        ]
        | None
    ) = Field(default=None, description="Storage class of the claim that is made. Absent: the cluster's default class.")
    access_modes: Annotated[
        list[AccessMode], Field(min_length=1, max_length=3), Extension("x-kubernetes-list-type", "set")
    ] = Field(
        default=[AccessMode.READ_WRITE_ONCE],
        description="Access modes of the claim that is made. With ReadWriteMany the files can be served from several "
        "nodes at once.",
    )
    reclaim_policy: ReclaimPolicy = Field(
        default=ReclaimPolicy.DELETE,
        description="Delete: the files go deleteAfterUnused after the last Model that uses them. Retain: they stay "
        "until a person deletes the ModelDownload.",
    )
    delete_after_unused: Duration = Field(
        default="24h", description="How long files that no Model uses any more are kept, such as 30m or 24h."
    )


STORAGE_IS_IMMUTABLE = Rule(
    "self == oldSelf",
    "spec.storage cannot be changed, because the volume exists already; delete this object and create it again, "
    "or create one with another name",
)
