"""Endpoint functions of the SCIM server on the console port: who calls, what is asked, the answer with its version."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

from appliance.access.directory_tokens import DirectoryTokens
from appliance.access.scim import discovery
from appliance.access.scim.errors import ScimFilterInvalid, ScimResourceUnknown, ScimSyntaxInvalid, ScimValueInvalid
from appliance.access.scim.filters import Filter, read_filter
from appliance.access.scim.patch import read_patch
from appliance.access.scim.resources import GROUP, USER
from appliance.access.scim.service import ScimService
from appliance.audit import Actor
from appliance.web.peer import Peer
from appliance.web.routes import Handler
from est.errors import BodyMalformed
from est.exchange import Call, Reply
from est.transfer import read_json

MEDIA_TYPE = "application/scim+json"
BASE = "/scim/v2"
MAX_BODY = 1024 * 1024
_MAX_DEPTH = 12
_DEFAULT_COUNT = 100


class ScimRoutes:
    """/scim/v2: every call brings a client's token."""

    def __init__(self, service: ScimService, tokens: DirectoryTokens, base_url: Callable[[], str]) -> None:
        """`base_url` answers scheme and address under which clients find the console port, for locations."""
        self._service = service
        self._tokens = tokens
        self._base_url = base_url

    @property
    def _base(self) -> str:
        return self._base_url() + BASE

    @property
    def endpoints(self) -> dict[str, Handler]:
        """Endpoint functions by their names in the route table."""
        return {
            "scim.config": self.config,
            "scim.types": self.types,
            "scim.type": self.types,
            "scim.schemas": self.schemas,
            "scim.schema": self.schemas,
            "scim.users": self.users,
            "scim.create_user": self.create_user,
            "scim.user": self.user,
            "scim.replace_user": self.replace_user,
            "scim.patch_user": self.patch_user,
            "scim.delete_user": self.delete_user,
            "scim.groups": self.groups,
            "scim.create_group": self.create_group,
            "scim.group": self.group,
            "scim.replace_group": self.replace_group,
            "scim.patch_group": self.patch_group,
            "scim.delete_group": self.delete_group,
        }

    # -- what this server can do

    async def config(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        await self._actor(call, peer)
        return _answer(discovery.provider_config(self._base))

    async def types(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        await self._actor(call, peer)
        return _one_or_all(discovery.resource_types(self._base), params)

    async def schemas(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        await self._actor(call, peer)
        return _one_or_all(discovery.schemas(self._base), params)

    # -- users

    async def users(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        await self._actor(call, peer)
        asked = _Query(call.query)
        found, total = await self._service.users(asked.filter, start=asked.start, count=asked.count)
        return _answer(
            discovery.listed([asked.cut(self._located(one)) for one in found], total=total, start=asked.start)
        )

    async def create_user(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        actor = await self._actor(call, peer)
        return self._made(await self._service.create_user(_document(call, USER), actor=actor))

    async def user(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        await self._actor(call, peer)
        return self._shown(await self._service.user(params["id"]), call)

    async def replace_user(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        actor = await self._actor(call, peer)
        document = _document(call, USER)
        return self._shown(
            await self._service.replace_user(params["id"], document, actor=actor, match=_match(call)), call
        )

    async def patch_user(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        actor = await self._actor(call, peer)
        operations = read_patch(_json(call))
        return self._shown(
            await self._service.patch_user(params["id"], operations, actor=actor, match=_match(call)), call
        )

    async def delete_user(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        actor = await self._actor(call, peer)
        await self._service.delete_user(params["id"], actor=actor, match=_match(call))
        return Reply(204)

    # -- groups

    async def groups(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        await self._actor(call, peer)
        asked = _Query(call.query)
        found, total = await self._service.groups(
            asked.filter, start=asked.start, count=asked.count, with_members=asked.wants("members")
        )
        return _answer(
            discovery.listed([asked.cut(self._located(one)) for one in found], total=total, start=asked.start)
        )

    async def create_group(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        actor = await self._actor(call, peer)
        return self._made(await self._service.create_group(_document(call, GROUP), actor=actor))

    async def group(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        await self._actor(call, peer)
        wanted = _Query(call.query).wants("members")
        return self._shown(await self._service.group(params["id"], with_members=wanted), call)

    async def replace_group(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        actor = await self._actor(call, peer)
        document = _document(call, GROUP)
        return self._shown(
            await self._service.replace_group(params["id"], document, actor=actor, match=_match(call)), call
        )

    async def patch_group(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        actor = await self._actor(call, peer)
        operations = read_patch(_json(call))
        return self._shown(
            await self._service.patch_group(params["id"], operations, actor=actor, match=_match(call)), call
        )

    async def delete_group(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        actor = await self._actor(call, peer)
        await self._service.delete_group(params["id"], actor=actor, match=_match(call))
        return Reply(204)

    # -- both

    async def _actor(self, call: Call, peer: Peer) -> Actor:
        name = await self._tokens.check(call.headers.get("authorization", ""))
        return Actor("directory", name, address=peer.address)

    def _located(self, resource: dict[str, Any]) -> dict[str, Any]:
        kind = resource["meta"]["resourceType"]
        location = f"{self._base}/{kind}s/{resource['id']}"
        return {**resource, "meta": {**resource["meta"], "location": location}}

    def _shown(self, resource: dict[str, Any], call: Call) -> Reply:
        found = self._located(resource)
        version = found["meta"]["version"]
        known = [one.strip() for one in call.headers.get("if-none-match", "").split(",")]
        if call.method == "GET" and version in known:
            return Reply(304, headers={"etag": version})
        return _answer(_Query(call.query).cut(found), headers={"etag": version})

    def _made(self, resource: dict[str, Any]) -> Reply:
        found = self._located(resource)
        headers = {"location": found["meta"]["location"], "etag": found["meta"]["version"]}
        return _answer(found, 201, headers)


class _Query:
    """The query of a request (RFC 7644, sections 3.4.2 and 3.9); raises ScimError for what cannot be read."""

    def __init__(self, text: str) -> None:
        try:
            found = dict(parse_qsl(text, keep_blank_values=True, max_num_fields=32, errors="strict"))
        except (ValueError, UnicodeDecodeError) as cause:
            raise ScimSyntaxInvalid("the query cannot be read") from cause
        self._found = {name.lower(): value for name, value in found.items()}
        self.start = max(1, self._number("startindex", 1))
        self.count = max(0, min(self._number("count", _DEFAULT_COUNT), discovery.MAX_RESULTS))
        self._only = self._names("attributes")
        self._without = self._names("excludedattributes")

    @property
    def filter(self) -> Filter | None:
        text = self._found.get("filter")
        if text is None:
            return None
        if not text.strip():
            raise ScimFilterInvalid("the filter is empty")
        return read_filter(text)

    def wants(self, attribute: str) -> bool:
        """Whether an attribute belongs into the answer."""
        return attribute not in self._without and (not self._only or attribute in self._only)

    def cut(self, resource: dict[str, Any]) -> dict[str, Any]:
        """The resource with the attributes that were asked for; schemas, id and meta always come."""
        if not self._only and not self._without:
            return resource
        always = ("schemas", "id", "meta")
        return {name: value for name, value in resource.items() if name in always or self.wants(name.lower())}

    def _number(self, name: str, default: int) -> int:
        text = self._found.get(name)
        if text is None:
            return default
        if not text.lstrip("-").isdecimal() or len(text) > 10:
            raise ScimValueInvalid(f"{name} is a number")
        return int(text)

    def _names(self, name: str) -> frozenset[str]:
        listed = [one.strip().lower() for one in self._found.get(name, "").split(",")]
        # a sub-attribute brings its attribute, one of an extension the extension
        return frozenset(
            one.rpartition(":")[0] if one.startswith("urn:") else one.partition(".")[0] for one in listed if one
        )


def _json(call: Call) -> Any:
    try:
        return read_json(call.body, max_bytes=MAX_BODY, max_depth=_MAX_DEPTH)
    except BodyMalformed as cause:
        raise ScimSyntaxInvalid(f"the body is not JSON that is read here: {cause.detail}") from cause


def _document(call: Call, schema: str) -> dict[str, Any]:
    found = _json(call)
    if not isinstance(found, dict):
        raise ScimSyntaxInvalid("a resource is an object")
    listed = next((value for name, value in found.items() if name.lower() == "schemas"), None)
    named = [one.lower() for one in listed if isinstance(one, str)] if isinstance(listed, list) else []
    if schema.lower() not in named:
        raise ScimSyntaxInvalid(f"schemas must name {schema}")
    return found


def _match(call: Call) -> str:
    return call.headers.get("if-match", "")


def _answer(document: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(status, MEDIA_TYPE, headers or {}, json.dumps(document, ensure_ascii=False).encode())


def _one_or_all(found: list[dict[str, Any]], params: Mapping[str, str]) -> Reply:
    if "id" not in params:
        return _answer(discovery.listed(found))
    for one in found:
        if one["id"].lower() == params["id"].lower():
            return _answer(one)
    raise ScimResourceUnknown("there is nothing of this name")
