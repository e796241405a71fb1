"""What the gateway says itself: OpenAI's error shape, which the official clients turn into typed exceptions.

Bodies name neither engines, addresses nor keys: what stands in them reaches people outside the cluster.
"""

from dataclasses import dataclass
from http import HTTPStatus

import orjson

JSON_HEADER = b"content-type: application/json\r\n"


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that no engine gave.

    `retry_after` is in seconds, 0 for none; `param` names a field of the request; `allow` the methods that 405 allows.
    """

    status: int
    code: str
    message: str
    retry_after: int = 0
    param: str | None = None
    allow: str = ""

    @property
    def kind(self) -> str:
        """OpenAI's `type` of the error."""
        if self.status == HTTPStatus.TOO_MANY_REQUESTS:
            return "rate_limit_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"

    def body(self) -> bytes:
        """The JSON document."""
        fields = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return orjson.dumps({"error": fields})

    def headers(self) -> bytes:
        """Header lines, each ended."""
        extra = b"retry-after: %d\r\n" % self.retry_after if self.retry_after else b""
        if self.status == HTTPStatus.UNAUTHORIZED:
            extra += b"www-authenticate: Bearer\r\n"
        if self.status == HTTPStatus.METHOD_NOT_ALLOWED:
            extra += b"allow: %s\r\n" % self.allow.encode()
        return JSON_HEADER + extra

    def event(self) -> bytes:
        """The same inside a stream that has begun."""
        return b"data: " + self.body() + b"\n\n"


OVERLOADED = Refusal(503, "overloaded", "Too many large requests are under way; try again later.", 5)
_UNLOADED = "unloaded (its replicas are 0), and waits for a person to load it again"


def bad_request(message: str, code: str = "invalid_request", param: str | None = None) -> Refusal:
    """400: the client must change the request."""
    return Refusal(400, code, message, param=param)


def serves_something_else(name: str, serves: str) -> Refusal:
    """400: a chat for a server of embeddings or a reranker, or embeddings of a reranker."""
    message = f"The model `{name[:200]}` does not answer that: it serves /v1/{serves}."
    return bad_request(message, "unsupported_endpoint", "model")


def model_not_found(name: str) -> Refusal:
    """404: no Model or alias of this name."""
    return Refusal(404, "model_not_found", f"The model `{name[:200]}` does not exist.", param="model")


def model_not_allowed(name: str) -> Refusal:
    """403: the key may not use this name, or it does not exist: who asks for what is not theirs is not told which."""
    return Refusal(403, "model_not_allowed", f"This API key may not use the model `{name[:200]}`.", param="model")


def hold_queue_full(name: str, retry_after: int) -> Refusal:
    """429: as many requests as allowed wait for this name already."""
    message = f"Too many requests wait for the model `{name}`; try again later."
    return Refusal(429, "hold_queue_full", message, retry_after)


def model_loading(name: str, retry_after: int) -> Refusal:
    """503: the Model sleeps and this name holds no requests; it is being woken."""
    return Refusal(503, "model_loading", f"The model `{name}` is being loaded; try again later.", retry_after)


def model_unloaded(name: str, retry_after: int) -> Refusal:
    """503: the same of a Model that a person unloaded, and that no request wakes."""
    return Refusal(503, "model_loading", f"The model `{name}` is {_UNLOADED}.", retry_after)


def blocked(name: str, code: str, why: str, retry_after: int) -> Refusal:
    """503: the Model has no server and will have none until a person does something; `why` is its status' sentence."""
    return Refusal(503, code, f"The model `{name}` cannot be served now: {why}", retry_after)


def requirements_not_met(name: str, lacking: tuple[str, ...], retry_after: int) -> Refusal:
    """503: the alias requires what none of its Models offers, until a person changes one or the other."""
    message = f"The model `{name}` cannot be served now: it requires {', '.join(lacking)}, and no Model offers that."
    return Refusal(503, "requirements_not_met", message, retry_after)


def hold_timeout(name: str, *, unloaded: bool) -> Refusal:
    """504: the Model did not get ready, or free, in time."""
    why = f": it is {_UNLOADED}" if unloaded else ""
    return Refusal(504, "hold_timeout", f"The model `{name}` did not become available in time{why}.")


def rate_limited(limit: str, retry_after: int) -> Refusal:
    """429: the key has used up `limit`."""
    return Refusal(429, "rate_limit_exceeded", f"This API key is limited to {limit}; try again later.", retry_after)


NO_KEYS = Refusal(401, "invalid_api_key", "This gateway serves nobody yet: no API key has been made for it.")
EXPIRED_KEY = Refusal(401, "invalid_api_key", "This API key has expired.")
INVALID_KEY = Refusal(401, "invalid_api_key", "Incorrect or missing API key.")
UNKNOWN_PATH = Refusal(404, "unknown_url", "There is no such path here.")
ONLY_POST = Refusal(405, "method_not_allowed", "This method is not allowed here.", allow="POST")
ONLY_GET = Refusal(405, "method_not_allowed", "This method is not allowed here.", allow="GET")
NO_TUNNEL = Refusal(405, "method_not_allowed", "This is no proxy for other hosts.", allow="GET, POST")
BODY_TOO_LARGE = Refusal(413, "request_too_large", "The request body is too large.")
HEAD_TOO_LARGE = Refusal(431, "request_header_fields_too_large", "The request head is too large.")
MALFORMED = bad_request("The request is not valid HTTP/1.1.", "malformed_request")
TOO_SLOW = Refusal(408, "request_timeout", "The request did not arrive in time.")
TOO_MANY_CONNECTIONS = Refusal(503, "too_many_connections", "Too many connections; try again later.", 1)
UNSUPPORTED_CODING = Refusal(501, "unsupported_transfer_encoding", "Only chunked transfer coding is supported.")
UNSUPPORTED_CONTENT = Refusal(415, "unsupported_content_encoding", "Compressed request bodies are not supported.")
UNEXPECTED = Refusal(417, "expectation_failed", "Only Expect: 100-continue is supported.")
STARTING = Refusal(503, "starting", "The gateway does not know its models yet; try again.", 1)
SHUTTING_DOWN = Refusal(503, "shutting_down", "The gateway is shutting down; try again.", 1)
ENGINE_UNREACHABLE = Refusal(502, "engine_unreachable", "The model's server could not be reached.", 1)
ENGINE_BROKE = Refusal(502, "engine_error", "The model's server broke off its answer.")
ENGINE_TIMEOUT = Refusal(504, "engine_timeout", "The model's server did not answer in time.")
INTERNAL = Refusal(500, "internal_error", "The gateway failed.")
