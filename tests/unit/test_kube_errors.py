from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import aiohttp
import orjson
import pytest

from moorage.errors import ApiError, Conflict, Forbidden, Gone, Invalid, NotFound, Throttled, Unavailable
from moorage.kube.errors import KIND_NOT_SERVED, from_exception, from_response, from_status, retry_after


def status(code: int, reason: str, message: str, **details: object) -> bytes:
    return orjson.dumps({"kind": "Status", "code": code, "reason": reason, "message": message, "details": details})


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (400, Invalid),
        (401, Forbidden),
        (403, Forbidden),
        (404, NotFound),
        (408, Unavailable),
        (409, Conflict),
        (410, Gone),
        (413, Invalid),
        (415, ApiError),
        (422, Invalid),
        (429, Throttled),
        (500, Unavailable),
        (503, Unavailable),
        (504, Unavailable),
    ],
)
def test_each_status_has_its_exception(code: int, kind: type[ApiError]):
    error = from_response(code, status(code, "Because", "it is so", name="x"), {}, "GET /api")
    assert type(error) is kind
    assert (error.status, error.reason, error.message) == (code, "Because", "it is so")


def test_a_message_without_an_objects_name_tells_the_request():
    error = from_response(409, status(409, "Conflict", "Apply failed"), {}, "PATCH /api/v1/namespaces/a/configmaps/b")
    assert str(error) == "Apply failed (PATCH /api/v1/namespaces/a/configmaps/b)"


def test_an_apply_conflict_is_one_line_with_every_manager_and_field():
    text = 'Apply failed with 2 conflicts: conflicts with "kubectl":\n- .spec.replicas\n- .data.a'
    error = from_response(409, status(409, "Conflict", text), {}, "PATCH /x")
    assert 'conflicts with "kubectl": - .spec.replicas - .data.a' in str(error)
    assert "\n" not in str(error)


def test_a_kind_that_is_not_served_differs_from_an_object_that_is_not_there():
    assert from_response(404, b"404 page not found\n", {}, "GET /x").reason == KIND_NOT_SERVED
    absent = from_response(
        404, status(404, "NotFound", "the server could not find the requested resource"), {}, "GET /x"
    )
    assert absent.reason == KIND_NOT_SERVED
    assert (
        from_response(404, status(404, "NotFound", 'pods "a" not found', name="a"), {}, "GET /x").reason == "NotFound"
    )


def test_a_field_outside_the_schema_is_invalid_though_the_server_says_500():
    message = "failed to create typed patch object (a/m; v1, Kind=Model): .status.foo: field not declared in schema"
    error = from_response(500, status(500, "", message), {}, "PATCH /x")
    assert isinstance(error, Invalid)
    assert ".status.foo" in str(error)


def test_an_answer_that_is_no_status_is_quoted_and_bounded():
    error = from_response(502, b"<html>" + b"x" * 100_000, {}, "GET /x")
    assert isinstance(error, Unavailable)
    assert str(error).startswith("<html>xxx")
    assert len(str(error)) == 1024


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("3", 3.0), (None, None), ("", None), ("soon", None), ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0)],
)
def test_retry_after_header(header: str | None, seconds: float | None):
    assert retry_after({"Retry-After": header} if header is not None else {}) == seconds


def test_retry_after_as_a_date():
    then = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    wait = retry_after({"Retry-After": then})
    assert wait is not None
    assert 3500 < wait <= 3600


def test_the_header_wins_over_the_details():
    body = status(429, "TooManyRequests", "slow down", name="x", retryAfterSeconds=9)
    assert from_response(429, body, {"Retry-After": "2"}, "GET /x").retry_after == 2.0
    assert from_response(429, body, {}, "GET /x").retry_after == 9.0


def test_an_error_event_is_mapped_like_an_answer():
    assert isinstance(from_status({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}), Gone)


def test_transport_errors_say_what_happened_even_without_words():
    assert "no answer in time" in str(from_exception(TimeoutError(), "GET /x"))
    assert "ServerDisconnectedError" in from_exception(aiohttp.ServerDisconnectedError(), "GET /x").reason
    assert str(from_exception(ConnectionResetError(), "GET /x")) == "ConnectionResetError (GET /x)"
