"""Routes that list, create, fork, export, import and delete named sessions."""

from typing import Annotated

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import StringConstraints

from lacache.server.schemas import ERRORS, Json, SessionRequest, content_types
from lacache.server.service import Service
from lacache.server.session_store import SessionInfo

PREFIX = "/v1/sessions"
_FILE = "application/octet-stream"
_UPLOAD = {"requestBody": {"required": True, "content": {_FILE: {"schema": {}}}}}

Name = Annotated[str, StringConstraints(max_length=1_000)]


def router(service: Service) -> APIRouter:
    """Return the session routes; those that are not coroutines run in threads of their own."""
    routes = APIRouter(prefix=PREFIX, responses=ERRORS)

    @routes.get("")
    def list_sessions(model: str | None = None) -> Json:
        sessions = service.sessions(model).all()
        return {"object": "list", "data": [_record(info) for info in sessions]}

    @routes.post("", status_code=201)
    def create_session(body: SessionRequest) -> Json:
        return _record(service.sessions(body.model).create(body.name))

    @routes.get("/{name}")
    def get_session(name: Name, model: str | None = None) -> Json:
        return _record(service.sessions(model).info(name))

    @routes.delete("/{name}")
    def delete_session(name: Name, model: str | None = None) -> Json:
        service.sessions(model).delete(name)
        return {"id": name, "object": "session", "deleted": True}

    @routes.post("/{name}/fork", status_code=201)
    def fork_session(name: Name, body: SessionRequest) -> Json:
        return _record(service.sessions(body.model).fork(name, body.name))

    @routes.get("/{name}/file", response_class=Response, responses=content_types(_FILE))
    def export_session(name: Name, model: str | None = None) -> Response:
        return Response(service.sessions(model).export_file(name), media_type=_FILE)

    @routes.put("/{name}/file", status_code=201, openapi_extra=_UPLOAD)
    async def import_session(name: Name, request: Request, model: str | None = None) -> Json:
        sessions = service.sessions(model)
        data = await request.body()
        return _record(await run_in_threadpool(sessions.import_file, name, data))

    return routes


def _record(info: SessionInfo) -> Json:
    return {
        "id": info.name,
        "object": "session",
        "num_seen": info.num_seen,
        "bytes": info.num_bytes,
        "changed": int(info.changed),
    }
