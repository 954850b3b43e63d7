"""Serve the OpenAPI document and Swagger UI, all from this package: no other host is asked."""

from __future__ import annotations

from importlib import resources
from typing import cast

from litestar import Response, get
from litestar.params import FromPath

from penstock.api.problems import ROUTE_NOT_FOUND, ApiError
from penstock.api.routes.common import PROBLEMS, AnyRequest, query_of

_SWAGGER = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui-standalone-preset.js": "text/javascript",
}
_OURS = {"start.js": "text/javascript", "page.css": "text/css"}
# Swagger UI draws its icons from data: URLs; nothing else may come from anywhere but here, and no script is inline.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)


def _static(folder: str, name: str) -> bytes:
    return resources.files("penstock.api").joinpath("static", folder, name).read_bytes()


@get(
    "/openapi.json",
    operation_id="getOpenapi",
    summary="Describe this API (OpenAPI 3.1)",
    tags=["documents"],
)
async def get_openapi(request: AnyRequest) -> Response[bytes]:
    query_of(request)
    return Response(cast("bytes", request.app.state["openapi"]), media_type="application/json")


@get("/", include_in_schema=False, status_code=307)
async def get_root(request: AnyRequest) -> Response[bytes]:
    """Show whoever opens the server's address in a browser what there is."""
    query_of(request)
    # Relative, so that it holds behind a proxy that takes a prefix off.
    return Response(b"", status_code=307, headers={"Location": "docs"})


@get(
    "/docs",
    operation_id="getDocumentation",
    summary="Try this API in a browser",
    tags=["documents"],
    media_type="text/html",
)
async def get_documentation_page(request: AnyRequest) -> Response[bytes]:
    query_of(request)
    return Response(
        _static("docs", "page.html"),
        media_type="text/html",
        headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY, "Referrer-Policy": "no-referrer"},
    )


@get("/docs/{name:str}", include_in_schema=False, opt={PROBLEMS: (ROUTE_NOT_FOUND,)})
async def get_documentation_file(name: FromPath[str]) -> Response[bytes]:
    folder = "swagger" if name in _SWAGGER else "docs"
    media_type = _SWAGGER.get(name) or _OURS.get(name)
    if media_type is None:
        raise ApiError(ROUTE_NOT_FOUND, f"/docs has no file {name[:128]!r}.")
    return Response(_static(folder, name), media_type=media_type, headers={"Cache-Control": "max-age=3600"})
