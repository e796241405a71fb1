"""What Moorage knows about model sources without asking one: names, selection, addresses, URLs and reasons. Pure.

`moorage.hub` (operator) and `moorage.download` (the Job) share it, so that both read an answer of a hub alike.
"""

from moorage.sources.access import Access
from moorage.sources.errors import Headers, classify, rate_limit, retry_after, source_error
from moorage.sources.files import RepoFile, check_name, check_names, formats
from moorage.sources.hosts import HostPolicy
from moorage.sources.reasons import CATALOG, Reason, ReasonFacts
from moorage.sources.selection import Quantization, Selection, quantizations, select
from moorage.sources.tree import parse_commit, parse_license, parse_tree_page
from moorage.sources.urls import DEFAULT_ENDPOINT, Repository, next_page, origin, same_origin

__all__ = [
    "CATALOG",
    "DEFAULT_ENDPOINT",
    "Access",
    "Headers",
    "HostPolicy",
    "Quantization",
    "Reason",
    "ReasonFacts",
    "RepoFile",
    "Repository",
    "Selection",
    "check_name",
    "check_names",
    "classify",
    "formats",
    "next_page",
    "origin",
    "parse_commit",
    "parse_license",
    "parse_tree_page",
    "quantizations",
    "rate_limit",
    "retry_after",
    "same_origin",
    "select",
    "source_error",
]
