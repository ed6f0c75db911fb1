"""The console port's pages of this release: the manual, one page per problem reason, the OpenAPI document."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from html import escape
from pathlib import Path

from appliance.console.openapi import document
from appliance.errors import NotFound
from appliance.web.peer import Peer
from appliance.web.problems import all_leaves, status_of
from est.exchange import Call, Reply

DOCS = Path(__file__).parent.parent / "docs"
# pages carry no script and load nothing; they are read in a browser that also holds an administrator's session one day
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_STYLE = "body{font:16px/1.5 system-ui;max-width:50em;margin:2em auto;padding:0 1em}pre{white-space:pre-wrap}"


class ConsolePages:
    """Endpoint functions; everything here is public and changes nothing."""

    def __init__(self) -> None:
        # What is asked for is looked up among what is there, so that no name reaches the file system.
        self._files = {str(path.relative_to(DOCS)): path for path in (DOCS, *DOCS.rglob("*"))}

    async def problem(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        """GET /problems/{reason}: what a refusal means (the `type` of every problem document leads here)."""
        for leaf in all_leaves():
            if leaf.reason == params["reason"]:
                meaning = inspect.cleandoc(leaf.__doc__ or "")
                return _page(leaf.reason, f"<p>HTTP status {status_of(leaf)}.</p><pre>{escape(meaning)}</pre>")
        raise NotFound("there is no such reason")

    async def docs(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        """GET /docs/...: the manual, as the files are; a folder shows what it holds."""
        asked = params.get("path", "").strip("/")
        path = self._files.get(asked or ".")
        if path is None:
            raise NotFound("the manual has no such page")
        if path.is_dir():
            rows = [
                f'<li><a href="/docs/{escape(str(entry.relative_to(DOCS)))}{"/" if entry.is_dir() else ""}">'
                f"{escape(entry.stem)}</a></li>"
                for entry in sorted(path.iterdir())
                if entry.is_dir() or entry.suffix == ".md"
            ]
            return _page(f"Manual {asked}".strip(), f"<ul>{''.join(rows)}</ul>")
        return Reply(200, "text/plain; charset=utf-8", HEADERS, path.read_bytes())

    async def openapi(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        """GET /openapi.json: every route of every port, generated from the route table."""
        return Reply(200, "application/json", HEADERS, json.dumps(document(), indent=1).encode())


def _page(title: str, inner: str) -> Reply:
    text = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>{inner}</body></html>"
    )
    return Reply(200, "text/html; charset=utf-8", HEADERS, text.encode())
