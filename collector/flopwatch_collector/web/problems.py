"""Errors as RFC 9457 problem documents; each says what to do about it."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from flopwatch_proto.errors import PermanentError, RetryableError

MEDIA_TYPE: Final = "application/problem+json"
RETRY_AFTER_S: Final = 2
_TITLES: Final = {
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    422: "The request cannot be understood",
    429: "Too many",
    500: "Internal error",
    503: "Busy or not ready",
}

log = structlog.get_logger()


class Problem(Exception):
    """An answer that is no answer.

    Attributes:
        status: the HTTP status.
        detail: one sentence that names the parameter and the fix.
        parameter: the query or path parameter that is wrong; empty where it is none.
    """

    def __init__(self, status: int, detail: str, *, parameter: str = "") -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.parameter = parameter


def install(app: FastAPI) -> None:
    """Make every error of an application a problem document."""

    def answered(request: Request, exc: Exception) -> Response:
        return document(request, as_problem(exc))

    for kind in (
        Problem,
        RetryableError,
        PermanentError,
        RequestValidationError,
        HTTPException,
        Exception,
    ):
        app.add_exception_handler(kind, answered)


def as_problem(exc: Exception) -> Problem:
    """Return the problem that an exception means to whoever asked."""
    if isinstance(exc, Problem):
        return exc
    if isinstance(exc, RetryableError):
        return Problem(503, f"try again in a moment: {exc}")
    if isinstance(exc, RequestValidationError):
        first = exc.errors()[0]
        name = str(first["loc"][-1])
        return Problem(422, f"{name}: {first['msg']}", parameter=name)
    if isinstance(exc, HTTPException):
        detail = str(exc.detail)
        if exc.status_code == 404:
            detail = "no such path; /api/docs lists all there are"
        return Problem(exc.status_code, detail)
    log.error("request_failed", reason=repr(exc), exc_info=exc)
    return Problem(500, "an error of flopwatch itself; its log says more")


def document(request: Request, problem: Problem) -> Response:
    """Return a problem as a response."""
    content: dict[str, Any] = {
        "type": "about:blank",
        "title": _TITLES.get(problem.status, "Error"),
        "status": problem.status,
        "detail": problem.detail,
        "instance": request.url.path,
    }
    if problem.parameter:
        content["parameter"] = problem.parameter
    headers = {"Retry-After": str(RETRY_AFTER_S)} if problem.status == 503 else None
    return Response(
        msgspec.json.encode(content), problem.status, headers=headers, media_type=MEDIA_TYPE
    )
