from __future__ import annotations

import pytest

from appliance.access.owner_rows import (
    MAX_CSV_CHARS,
    OwnerFileRefused,
    OwnerRow,
    OwnerTextRefused,
    check_department,
    check_row,
    compare,
    read_csv,
)

HEADER = "ref,name,kind,department\n"
ALICE = OwnerRow("alice", "Alice A.", "person", "R&D")
BOB = OwnerRow("bob", "Bob B.", "person", "HR")


def test_a_file_with_the_four_columns_in_any_order_is_read() -> None:
    assert read_csv(HEADER + "alice,Alice A.,person,R&D\nbob,Bob B.,person,HR\n") == (ALICE, BOB)
    assert read_csv("\ufeffdepartment,ref,kind,name\r\nR&D,alice,person,Alice A.\r\n") == (ALICE,)
    assert read_csv(HEADER + '\ndoor,"Door, left",device,\n')[0].department == ""


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", 1, "missing"),
        ("ref,name,kind\nalice,A,person\n", 1, "department is missing"),
        ("ref,name,kind,department,mail\n", 1, "unknown column 'mail'"),
        ("ref,name,kind,department,ref\n", 1, "twice"),
        (HEADER + "alice,A,person\n", 2, "3 values"),
        (HEADER + "alice,A,person,R&D,x\n", 2, "5 values"),
        (HEADER + "alice,A,person,R&D\nalice,A,person,HR\n", 3, "already on line 2"),
        (HEADER + "alice,A,robot,R&D\n", 2, "kind"),
        (HEADER + "alice,A,Person,R&D\n", 2, "kind"),
        (HEADER + "al ice,A,person,R&D\n", 2, "ref"),
        (HEADER + ",A,person,R&D\n", 2, "ref"),
        (HEADER + "alіce,A,person,R&D\n", 2, "ref"),  # Cyrillic i
        (HEADER + f"alice,A,person,{'x' * 65}\n", 2, "64"),
        (HEADER + "alice,A,person,R\u202eD\n", 2, "U+202E"),
        (HEADER + "alice,A\u200b,person,R&D\n", 2, "U+200B"),
        (HEADER + 'alice,A,person,"R\nD"\n', 3, "U+000A"),
        (HEADER + 'alice,A,person,"R&D\n', 2, "unexpected end"),
        (HEADER + "alice,A\0,person,R&D\n", 2, "NUL"),
    ],
)
def test_a_file_that_says_anything_else_is_refused_naming_the_line(text: str, line: int, says: str) -> None:
    with pytest.raises(OwnerFileRefused) as refused:
        read_csv(text)
    assert refused.value.fields["line"] == line
    assert says in refused.value.detail


def test_a_file_of_any_length_costs_bounded_work() -> None:
    with pytest.raises(OwnerFileRefused):
        read_csv("x" * (MAX_CSV_CHARS + 1))
    with pytest.raises(OwnerFileRefused):
        read_csv(HEADER + "alice," + "x" * 200_000 + ",person,R&D\n")


def test_a_department_has_one_spelling() -> None:
    assert check_department(" Recherche et De\u0301veloppement ") == "Recherche et D\u00e9veloppement"
    for text in ("a\tb", "a\x7f", "\u2067x", "x" * 65, "\ud800", "\ue000", "a\u2028b"):
        with pytest.raises(OwnerTextRefused):
            check_department(text)


def test_texts_that_look_like_templates_stay_what_they_are() -> None:
    for text in ("%{User-Name}", "{{ 7*7 }}", "$(reboot)", "=cmd|' /C calc'!A0", "'; DROP TABLE owners; --"):
        assert check_department(text) == text


def test_the_difference_names_what_is_new_other_equal_and_gone() -> None:
    moved = OwnerRow("alice", "Alice A.", "person", "HR")
    carol = OwnerRow("carol", "Carol", "person", "HR")
    found = compare({"alice": ALICE, "bob": BOB}, [moved, carol])
    assert found.added == (carol,)
    assert [(one.before, one.after) for one in found.changed] == [(ALICE, moved)]
    assert found.unchanged == ()
    assert found.vanished == (BOB,)


def test_more_than_a_tenth_is_a_large_change() -> None:
    registered = {f"p{n}": check_row(f"p{n}", "P", "person", "R&D") for n in range(20)}
    rows = list(registered.values())
    two = [check_row(f"p{n}", "P", "person", "HR") for n in range(2)]
    assert not compare(registered, rows).is_large
    assert not compare(registered, two + rows[2:]).is_large
    assert compare(registered, [*two, check_row("p2", "P", "person", "HR"), *rows[3:]]).is_large
    assert compare(registered, rows[3:]).is_large
    assert not compare({}, rows).is_large
