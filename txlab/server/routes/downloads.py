"""Files of checkpoints, fetched by links that the server signed: such a link needs no API key."""

from __future__ import annotations

import io
import tarfile
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse, RedirectResponse

from txlab.server.errors import ApiError
from txlab.server.links import LINK_SECONDS
from txlab.server.routes.checkpoints import NOT_FOUND, ONE, Target, sweep_expired
from txlab.server.state import Server, ServerState
from txlab.server.wire.checkpoints import ExternalUrls
from txlab.store.checkpoints import Checkpoints

router = APIRouter(tags=["downloads"], dependencies=[Depends(sweep_expired)])


@router.get(ONE + "/external_weights_urls", summary="Link to the files of an export", responses={**NOT_FOUND})
async def external_weights_urls(target: Target, request: Request, server: Server) -> ExternalUrls:
    """One link for each file, on the host by which the client knows this server."""
    if target.kind != "external_weights":
        raise ApiError(400, f"{target.path!r} is no export: make one by save_weights_external, and ask for its files")
    expires = _expiry()
    files = await server.in_worker(server.checkpoints.files, target.path)
    return ExternalUrls(urls={name: _link(server, request, f"files/{name}") for name in files}, expires=expires)


@router.get(
    ONE + "/files/{file}", summary="Fetch a file of an export", response_class=FileResponse, responses={**NOT_FOUND}
)
async def fetch_file(
    target: Target,
    file: Annotated[str, PathParameter(description="As external_weights_urls names it.")],
    server: Server,
) -> FileResponse:
    """Streamed from the disk."""
    found = await server.in_worker(_find_file, server.checkpoints, target.path, file)
    return FileResponse(found, media_type="application/octet-stream", filename=file)


def _find_file(checkpoints: Checkpoints, path: str, name: str) -> Path:
    file = checkpoints.files(path).get(name)
    if file is None or not file.is_file():
        raise ApiError(404, f"checkpoint {path!r} has no file {name!r}")
    return file


@router.get(
    ONE + "/archive",
    summary="Redirect to a checkpoint as one .tar",
    status_code=302,
    response_class=RedirectResponse,
    responses={**NOT_FOUND},
)
async def archive(target: Target, request: Request, server: Server) -> RedirectResponse:
    """For clients older than external weights. `Expires` says how long the link is good."""
    await server.in_worker(server.checkpoints.info, target.path)
    expires = format_datetime(_expiry(), usegmt=True)
    return RedirectResponse(_link(server, request, "archive.tar"), 302, {"Expires": expires})


@router.get(
    ONE + "/archive.tar", summary="Fetch a checkpoint as one .tar", response_class=Response, responses={**NOT_FOUND}
)
async def fetch_archive(target: Target, server: Server) -> Response:
    """Its adapter in PEFT's format, made anew each time."""
    return Response(
        await server.in_worker(_tar, server.checkpoints, target.path),
        media_type="application/x-tar",
        headers={"Content-Disposition": f'attachment; filename="{target.name}.tar"'},
    )


def _tar(checkpoints: Checkpoints, path: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in checkpoints.peft_files(path).items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _expiry() -> datetime:
    return datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=LINK_SECONDS)


def _link(server: ServerState, request: Request, relative: str) -> str:
    """A URL beside the one that was asked for, on the host by which the client knows this server."""
    folder = request.scope["path"].rpartition("/")[0]
    link = server.credentials.link(f"{folder}/{relative}")
    return f"{request.url.scheme}://{request.url.netloc}{request.scope.get('root_path', '')}{link}"
