"""SCIM: whatever a client sends, a refusal of ours comes out or a user within the rules."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from appliance.access.owner_rows import check_department, check_name, check_ref
from appliance.access.scim import resources
from appliance.access.scim.errors import ScimError, ScimFilterInvalid, ScimPathInvalid
from appliance.access.scim.filters import passes, read_filter, read_path
from appliance.access.scim.patch import PATCH_OP, patch_group, patch_user, read_patch
from appliance.access.scim.resources import ENTERPRISE, USER, User, read_group, read_user, write_user

NAMES = st.sampled_from(
    ["userName", "active", "name", "name.givenName", "displayName", "externalId", "members", "id", "schemas", "emails",
     ENTERPRISE, f"{ENTERPRISE}:department", f"{USER}:active", 'members[value eq "a"]', 'emails[type eq "work"].value',
     "department", "DISPLAYNAME", "title", "urn:x:y", "", "a.b.c", "[", "groups"]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12) | st.sampled_from(["False", "alice", "R&D"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
OPERATIONS = st.fixed_dictionaries(
    {"op": st.sampled_from(["add", "Replace", "REMOVE", "move"]) | VALUES},
    optional={"path": NAMES | VALUES, "value": VALUES},
)
WORDS = st.sampled_from(
    ["userName", "eq", "ne", "co", "sw", "ew", "pr", "gt", "and", "or", "not", "(", ")", "[", "]", '"x"', "true",
     "null", "1", "emails", "meta.created", ENTERPRISE + ":department", "a.b.c", '"\\u0041"', '"', "\\"]
)  # fmt: skip


def check(user: User) -> None:
    check_ref(user.user_name)
    check_name(user.shown_name)
    check_department(user.department)
    assert read_user(write_user(user)) == user


@given(st.lists(WORDS, max_size=14).map(" ".join) | st.text(max_size=60), VALUES)
def test_any_filter_is_read_or_refused_and_holds_against_anything(text: str, value: Any) -> None:
    try:
        found = read_filter(text)
    except ScimFilterInvalid:
        return
    assert passes(found, {"userName": value, "emails": value, ENTERPRISE: value}) in (True, False)


@given(NAMES | st.text(max_size=40))
def test_any_path_is_read_or_refused(text: str) -> None:
    try:
        read_path(text)
    except ScimPathInvalid:
        return


@given(st.dictionaries(NAMES | st.text(max_size=8), VALUES, max_size=6))
def test_any_object_is_a_user_or_a_group_within_the_rules_or_refused(document: dict[str, Any]) -> None:
    for read in (read_user, read_group):
        try:
            found = read(document)
        except ScimError:
            continue
        if isinstance(found, User):
            check(found)


@given(st.lists(OPERATIONS, max_size=4) | VALUES)
def test_any_patch_leaves_a_user_and_a_group_within_the_rules_or_is_refused(operations: Any) -> None:
    document = json.loads(json.dumps({"schemas": [PATCH_OP], "Operations": operations}))
    try:
        read = read_patch(document)
    except ScimError:
        return
    before = User("alice", "x", "Alice", department="R&D", active=True)
    try:
        check(patch_user(before, read))
    except ScimError:
        pass
    try:
        after = patch_group("R&D", "x", frozenset({"a", "b"}), read, id_="g")
    except ScimError:
        return
    assert all(isinstance(one, str) for one in after.members)


@given(st.text(max_size=128), st.text(max_size=128))
def test_a_name_of_two_parts_is_a_name(given_name: str, family_name: str) -> None:
    try:
        check(read_user({"userName": "a", "name": {"givenName": given_name, "familyName": family_name}}))
    except ScimError:
        return


@given(VALUES)
def test_any_member_list_is_texts_or_refused(value: Any) -> None:
    try:
        found = resources.read_members(value)
    except ScimError:
        return
    assert all(isinstance(one, str) and one for one in found)
