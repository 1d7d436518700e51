"""`/openapi.json` and `/docs`: what the service offers, made from the routes; no script and no style from elsewhere."""

from collections.abc import Mapping
from html import escape
from typing import cast

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

Document = dict[str, object]

_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer <key>`"},
    "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1b1f}"
    "code,pre{font:14px/1.45 ui-monospace,monospace;background:#f2f2f5;border-radius:4px}code{padding:.1em .3em}"
    "pre{padding:1rem;overflow:auto}table{border-collapse:collapse;width:100%}"
    "td,th{border-bottom:1px solid #ddd;padding:.35rem .6rem;text-align:left;vertical-align:top}"
    "h2{margin-top:2.5rem;border-top:1px solid #ddd;padding-top:1.5rem}.m{font-weight:600}"
)


def describe(app: FastAPI) -> Document:
    """Return the OpenAPI document of the routes; problems have the media type that they are sent with."""
    document: Document = get_openapi(
        title="Prismrec",
        version="1",
        summary="Multi-modal recommendations that say which modality of which past item drove them.",
        description=(
            "Answers are made from one version of model and index, named in each of them. Errors are "
            "`application/problem+json` (RFC 9457). Unknown fields are refused in requests; in answers, ignore them."
        ),
        routes=app.routes,
    )
    components = cast("dict[str, object]", document["components"])
    components["securitySchemes"] = _SCHEMES
    for operation in _operations(document).values():
        for status, response in cast("dict[str, Document]", operation["responses"]).items():
            content = cast("Document", response.get("content", {}))
            if "#/components/schemas/Problem" in str(content) and status[0] in "45":
                response["content"] = {"application/problem+json": content["application/json"]}
    return document


def description_routes(app: FastAPI) -> list[Route]:
    """Return the two routes; both are open, they say nothing that the source does not."""

    async def openapi(_request: Request) -> Response:
        return Response(to_json(app.openapi()), media_type="application/json")

    async def docs(_request: Request) -> Response:
        return Response(
            page(app.openapi()),
            media_type="text/html",
            headers={"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"},
        )

    return [Route("/openapi.json", openapi), Route("/docs", docs)]


def page(document: Document) -> str:
    """Return the document as a page for people."""
    info = cast("Mapping[str, str]", document["info"])
    schemas = cast("Mapping[str, Document]", cast("Document", document["components"])["schemas"])
    parts = [f"<h1>{escape(info['title'])}</h1><p>{escape(info['summary'])}</p><p>{escape(info['description'])}</p>"]
    parts.append('<p>For programs: <a href="openapi.json">openapi.json</a>.</p><h2>Endpoints</h2>')
    parts += [_operation(name, operation) for name, operation in _operations(document).items()]
    parts.append("<h2>Bodies</h2>")
    parts += [_schema(name, schema) for name, schema in sorted(schemas.items())]
    head = f'<meta charset="utf-8"><title>{escape(info["title"])}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>'


def _operations(document: Document) -> dict[str, Document]:
    paths = cast("Mapping[str, Mapping[str, Document]]", document["paths"])
    return {f"{method.upper()} {path}": operation for path, by in paths.items() for method, operation in by.items()}


def _operation(name: str, operation: Document) -> str:
    rows = [
        f"<tr><td><code>{escape(str(parameter['name']))}</code></td><td>{_type(cast('Document', parameter['schema']))}"
        f"</td><td>{escape(str(parameter.get('description', '')))}</td></tr>"
        for parameter in cast("list[Document]", operation.get("parameters", []))
    ]
    table = f"<table>{''.join(rows)}</table>" if rows else ""
    bodies = [
        f"<p>{label}: {_type(_content_schema(part))}</p>"
        for label, part in (
            ("Body", operation.get("requestBody")),
            ("Answer", cast("Document", operation["responses"]).get("200")),
        )
        if part
    ]
    return (
        f'<h3><span class="m">{escape(name)}</span></h3><p>{escape(str(operation.get("description", "")))}</p>'
        f"<p>{escape(str(operation.get('x-access', 'Open.')))}</p>{table}{''.join(bodies)}"
    )


def _content_schema(part: object) -> Document:
    content = cast("Mapping[str, Document]", cast("Document", part).get("content", {}))
    return cast("Document", next(iter(content.values()), {}).get("schema", {}))


def _schema(name: str, schema: Document) -> str:
    required = cast("list[str]", schema.get("required", []))
    rows = [
        f"<tr><td><code>{escape(field)}</code>{'' if field in required else '?'}</td><td>{_type(part)}</td>"
        f"<td>{escape(str(part.get('description', '')))}</td></tr>"
        for field, part in cast("Mapping[str, Document]", schema.get("properties", {})).items()
    ]
    text = escape(str(schema.get("description", "")))
    return f'<h3 id="{escape(name)}">{escape(name)}</h3><p>{text}</p><table>{"".join(rows)}</table>'


_BOUNDS = {
    "minimum": "≥ {}",
    "maximum": "≤ {}",
    "minLength": "≥ {} characters",
    "maxLength": "≤ {} characters",
    "minItems": "≥ {} entries",
    "maxItems": "≤ {} entries",
    "default": "default {}",
}


def _type(schema: Document) -> str:
    """Return a schema in a few words, with its bounds."""
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        return f'<a href="#{escape(name)}">{escape(name)}</a>'
    options = cast("list[Document]", schema.get("anyOf") or schema.get("oneOf") or [])
    if options:
        words = " or ".join(dict.fromkeys(_type(option) for option in options if option.get("type") != "null"))
    elif "enum" in schema:
        words = " | ".join(f"<code>{escape(str(value))}</code>" for value in cast("list[object]", schema["enum"]))
    elif "const" in schema:
        words = f"<code>{escape(str(schema['const']))}</code>"
    elif schema.get("type") == "array":
        words = f"list of {_type(cast('Document', schema.get('items', {})))}"
    else:
        words = escape(str(schema.get("format") or schema.get("type") or "any"))
    bounds = [text.format(escape(str(schema[key]))) for key, text in _BOUNDS.items() if schema.get(key) is not None]
    return f"{words}, {', '.join(bounds)}" if bounds else words
