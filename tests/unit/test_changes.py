# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What differs between two configs is told by names and numbers, and never by what is in them."""

from __future__ import annotations

from ansible_collections.backstep.workers.plugins.module_utils._rollout.changes import changes

SECRET = b"hush-hush"


def test_the_same_files_are_no_change() -> None:
    assert changes({"a": b"1\n"}, {"a": b"1\n"}) == []
    assert changes({}, {}) == []


def test_each_way_in_which_a_file_can_differ() -> None:
    left = {"app.ini": b"one\ntwo\nthree\n", "gone.ini": b"x\n"}
    found = changes(left, {"app.ini": b"one\ntwo!\n", "new.ini": b"a\nb\n"})
    assert [(one["file"], one["how"], one["added"], one["removed"]) for one in found] == [
        ("app.ini", "changed", 1, 2),
        ("gone.ini", "removed", 0, 1),
        ("new.ini", "added", 2, 0),
    ]


def test_variables_of_the_environment_are_told_by_name() -> None:
    left = {"environment": b'PASSWORD="' + SECRET + b'"\nSAME="1"\nOLD="2"\n'}
    found = changes(left, {"environment": b'PASSWORD="other"\nSAME="1"\nNEW="3"\n'})
    assert found[0]["names"] == ["NEW", "OLD", "PASSWORD"]


def test_a_line_of_a_value_is_no_variable_s_name() -> None:
    left = {"environment": b'KEY="-----BEGIN\nhushAAAA==\n-----END"\n'}
    assert changes(left, {"environment": b'KEY="-----BEGIN\nhushBBBB==\n-----END"\n'})[0]["names"] == ["KEY"]
    assert changes(left, {"environment": b'KEY="never ends\nhush==\n'})[0]["names"] == ["KEY"]


def test_nothing_of_what_is_in_a_file_is_told() -> None:
    secret = b"password = " + SECRET + b"\n"
    found = changes({"app.ini": secret, "environment": b'A="' + SECRET + b'"\n'}, {"app.ini": b"", "b": secret})
    assert "hush" not in repr(found)


def test_what_is_too_long_to_compare_is_not_counted_and_not_called_the_same() -> None:
    found = changes({"big": None, "grown": b"1\n"}, {"big": None, "grown": None})
    assert [(one["file"], one["how"], one["added"], one["removed"]) for one in found] == [
        ("big", "changed", None, None),
        ("grown", "changed", None, None),
    ]
