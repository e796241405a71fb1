"""What servers say and what it means."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.errors import SourceError
from moorage.sources import (
    CATALOG,
    Access,
    Reason,
    classify,
    parse_commit,
    parse_license,
    parse_tree_page,
    retry_after,
    source_error,
)
from moorage.sources.tree import read_json
from moorage.sources.urls import next_page, redirect

NOW = datetime(2025, 1, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("status", "headers", "api", "reason", "retryable"),
    [
        (401, {"X-Error-Code": "RepoNotFound"}, True, "RepoNotFoundOrPrivate", False),
        (404, {"X-Error-Code": "RepoNotFound"}, True, "RepoNotFoundOrPrivate", False),
        (401, {"X-Error-Code": "GatedRepo"}, False, "GatedAccessDenied", False),
        (403, {"X-Error-Code": "GatedRepo"}, False, "GatedAccessDenied", False),
        (404, {"X-Error-Code": "RevisionNotFound"}, True, "RevisionNotFound", False),
        (404, {"X-Error-Code": "EntryNotFound"}, False, "FileNotFound", False),
        (401, {}, True, "Unauthorized", False),
        (403, {}, True, "AccessDenied", False),
        (404, {}, False, "FileNotFound", False),
        (404, {"Content-Type": "application/json"}, True, "RepoNotFoundOrPrivate", False),
        (404, {"Content-Type": "text/html"}, True, "NotAHub", False),
        (400, {}, False, "RequestRefused", False),
        (451, {}, False, "RequestRefused", False),
        (408, {}, True, "Timeout", True),
        (429, {"Retry-After": "7"}, True, "RateLimited", True),
        (500, {}, True, "ServerError", True),
        (503, {}, False, "ServerError", True),
        (204, {}, False, "UnexpectedContent", False),
    ],
)
def test_answers(status, headers, api, reason, retryable):
    error = classify(status, headers, "acme/model", access=Access(token="hf_x"), now=NOW, api=api)
    assert (error.reason, error.retryable) == (reason, retryable)
    assert "acme/model" in error.message
    assert f"HTTP {status}" in error.message


def test_messages_tell_a_missing_token_from_a_wrong_one():
    gated = {"X-Error-Code": "GatedRepo"}
    assert "no token was given" in classify(401, gated, "x", access=Access(), now=NOW).message
    assert "no permission" in classify(403, gated, "x", access=Access(token="hf_x"), now=NOW).message


def test_a_server_cannot_make_us_show_our_secrets():
    access = Access(token="hf_secret", headers={"X-Key": "other"})
    said = {"X-Error-Message": "you sent Bearer hf_secret and other"}
    error = classify(400, said, "x", access=access, now=NOW)
    assert "you sent Bearer *** and ***" in error.message


def test_what_the_server_says_is_shown_but_bounded():
    error = classify(400, {"X-Error-Message": "bad\x1b[31m" + "y" * 999}, "x", access=Access(), now=NOW)
    assert "bad" in error.message
    assert "\x1b" not in error.message
    assert len(error.message) < 300 + 200


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "120"}, 120),
        ({"Retry-After": "0"}, 0),
        ({"Retry-After": "Wed, 01 Jan 2025 12:00:30 GMT"}, 30),
        ({"Retry-After": "Wed, 01 Jan 2025 11:00:00 GMT"}, 0),
        ({"Retry-After": "soon"}, None),
        ({"RateLimit": '"api";r=0;t=55'}, 55),
        ({"RateLimit": '"api";r=3;t=55'}, None),
        ({"Retry-After": "soon", "RateLimit": '"api";r=0;t=9'}, 9),
        ({}, None),
    ],
)
def test_retry_after(headers, seconds):
    assert retry_after(headers, NOW) == seconds


def test_exit_codes_are_one_per_reason_and_in_their_ranges():
    assert set(CATALOG) == set(Reason)
    codes = [facts.exit_code for facts in CATALOG.values()]
    assert len(set(codes)) == len(codes)
    for reason, facts in CATALOG.items():
        if reason not in (Reason.COMPLETE, Reason.INTERRUPTED):
            assert (30 <= facts.exit_code <= 49) if facts.retryable else (10 <= facts.exit_code <= 29)


LFS = {"type": "file", "path": "m.gguf", "size": 9, "oid": "a" * 40, "lfs": {"oid": "B" * 64, "size": 7}}
SMALL = {"type": "file", "path": "c.json", "size": 5, "oid": "c" * 40}


def test_tree_page():
    large, small = parse_tree_page([LFS, {"type": "directory", "path": "d", "oid": "x"}, SMALL])
    assert (large.path, large.size, large.sha256, large.git_sha1) == ("m.gguf", 7, "b" * 64, None)
    assert (small.size, small.sha256, small.git_sha1) == (5, None, "c" * 40)


@pytest.mark.parametrize(
    "entry",
    [
        5,
        {},
        {"path": 1},
        {**SMALL, "size": -1},
        {**SMALL, "size": "5"},
        {**SMALL, "size": True},
        {**SMALL, "oid": "x"},
        {**SMALL, "size": 1 << 60},
        {**LFS, "lfs": {"oid": "b", "size": 1}},
        {**LFS, "lfs": {"size": 1}},
    ],
)
def test_odd_tree_entries(entry):
    with pytest.raises(SourceError) as caught:
        parse_tree_page([entry])
    assert caught.value.reason == "NotAHub"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["path", "size", "oid", "lfs", "type", "sha", "tags", "cardData", "license"]),
            inner,
            max_size=6,
        )
    ),
    max_leaves=12,
)


@given(json_values)
def test_no_answer_of_a_hub_breaks_the_parser(value):
    for parse in (parse_tree_page, parse_commit, parse_license):
        try:
            parse(value)
        except SourceError as error:
            assert error.reason == "NotAHub"


@pytest.mark.parametrize(
    ("answer", "license_"),
    [
        ({"tags": ["gguf", "license:apache-2.0", "region:us"]}, "apache-2.0"),
        ({"cardData": {"license": "mit"}, "tags": ["license:mit"]}, "mit"),
        (
            {"cardData": {"license": "other", "license_name": "qwen-research"}, "tags": ["license:other"]},
            "qwen-research",
        ),
        ({"cardData": {"license": "other"}, "tags": []}, "other"),
        ({"cardData": {"license": ["mit", "gpl"]}}, ""),
        ({"cardData": {"license": "x" * 101}}, ""),
        ({"cardData": {"license": "a\nb"}}, ""),
        ({"cardData": None, "tags": None}, ""),
        ([], ""),
    ],
)
def test_the_license_that_a_repository_states(answer: object, license_: str):
    assert parse_license(answer) == license_


def test_rights_are_about_the_repository():
    """Not "revision main of acme/x does not exist": people look for the repository then."""
    known = {"access": Access(), "now": NOW, "api": True, "repository": "repository acme/x on https://hub"}
    missing = classify(404, {"X-Error-Code": "RepoNotFound"}, "revision main of acme/x", **known).message
    assert missing.startswith(
        "not found: repository acme/x on https://hub does not exist, or it is private and no token"
    )
    assert "revision" not in missing
    assert (
        "revision v9" in classify(404, {"X-Error-Code": "RevisionNotFound"}, "revision v9 of acme/x", **known).message
    )
    assert "repository acme/x" in classify(401, {"X-Error-Code": "GatedRepo"}, "a.gguf of acme/x", **known).message


def test_what_a_person_must_mend_ends_in_how():
    for reason, facts in CATALOG.items():
        if facts.exit_code:
            assert source_error(reason, "x").message == ("x" if facts.retryable else f"x; {facts.advice}")
    assert all(facts.meaning.endswith(".") and facts.remedy.endswith(".") for facts in CATALOG.values())


def test_a_date_is_measured_by_the_clock_of_whoever_wrote_it():
    headers = {"Retry-After": "Wed, 01 Jan 2025 18:00:30 GMT", "Date": "Wed, 01 Jan 2025 18:00:00 GMT"}
    assert retry_after(headers, NOW) == 30
    assert retry_after({**headers, "Date": "yesterday"}, NOW) == 6 * 3600 + 30


@pytest.mark.parametrize("body", [b"[" * 100_000, b"[" + b"{}," * 3_000_000 + b"{}]", b"{", b"\xff"])
def test_json_that_would_hurt_is_none(body):
    with pytest.raises(ValueError, match=r".+"):
        read_json(body)


def test_addresses_that_are_none():
    with pytest.raises(SourceError, match="redirects to an address that is none"):
        redirect("https://hub/x", "http://[nowhere")
    assert next_page("https://hub/tree", '<http://[nowhere?cursor=2>; rel="next"') == "https://hub/tree?cursor=2"


@pytest.mark.parametrize("token", ["a\nb", "a\rb", "a\x00b", "€"])
def test_what_no_header_can_carry_is_refused_without_showing_it(token):
    with pytest.raises(SourceError) as caught:
        Access(token=f"hf_{token}").sent()
    assert caught.value.reason == "Unauthorized"
    assert "hf_" not in caught.value.message
    assert Access(token=" hf_x\n").sent() == {"Authorization": "Bearer hf_x"}
    assert Access(token=" \n").sent() == {}
