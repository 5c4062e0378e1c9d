# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Specs, paths, commands and environments."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.backstep.workers.plugins.module_utils._host import launch
from ansible_collections.backstep.workers.plugins.module_utils._host.layout import (
    Layout,
    Pool,
    Spec,
    environment_file,
    expand_command,
    programs,
    read_link,
    worker_environment,
)
from hypothesis import given
from hypothesis import strategies as st

LAYOUT = Layout(Path("/opt/backstep/mail"))
POOL = Pool("mail", "w1", "supervisord", "/run/s.sock", "/etc/s", "/usr/bin/python3")
SPEC = Spec(
    id="1.0-aaaaaaaa",
    version="1.0",
    pool="mail",
    engine="rq",
    queues=[["mail"], ["high", "low"]],
    processes=2,
    command=["rq", "--name", "{worker}", "--in={app}", "{config}/x", "{release}", "--q={queues}", "{queues}"],
    user="nobody",
    broker="redis://127.0.0.1:6379/0",
    broker_variable="RQ_REDIS_URL",
    identity={},
)


def test_one_process_listens_to_one_item_of_the_queues_and_they_are_numbered_from_one() -> None:
    assert SPEC.instances == [(1, ["mail"]), (2, ["mail"]), (3, ["high", "low"]), (4, ["high", "low"])]


def test_a_spec_is_read_back_from_json() -> None:
    assert Spec(**SPEC.as_json()) == SPEC


def test_a_command_is_filled_in_and_the_worker_s_name_is_left_to_the_launcher() -> None:
    home = "/opt/backstep/mail/releases/1.0-aaaaaaaa"
    expected = ["rq", "--name", "{worker}", f"--in={home}/app", f"{home}/config/x", home, "--q=high,low", "high", "low"]
    assert expand_command(SPEC.command, SPEC.id, LAYOUT, ["high", "low"]) == expected


def test_an_option_is_repeated_for_each_queue() -> None:
    given = ["worker", "--queue={queue}"]
    assert expand_command(given, SPEC.id, LAYOUT, ["high", "low"]) == ["worker", "--queue=high", "--queue=low"]


def test_a_variable_is_extended_by_a_path_of_the_release() -> None:
    extended = replace(SPEC, extends=["RUBYOPT -r{config}/backstep/reporter.rb"])
    expected = "--extend=RUBYOPT -r/opt/backstep/mail/releases/1.0-aaaaaaaa/config/backstep/reporter.rb"
    assert all(program.options[-1] == expected for program in programs(extended, POOL, LAYOUT))


@pytest.mark.parametrize(
    ("before", "extension", "after"),
    [
        ({}, "BETTER:/a:/b", "/a:/b"),
        ({"BETTER": "/c"}, "BETTER:/a", "/a:/c"),
        ({"BETTER": "-W0"}, "BETTER -r/x/y.rb", "-r/x/y.rb -W0"),
        ({"BETTER": ""}, "BETTER:/a", "/a"),
    ],
)
def test_the_launcher_puts_an_extension_before_what_is_there(
    before: dict[str, str], extension: str, after: str
) -> None:
    command = [sys.executable, launch.__file__, "--worker", "mail/1/w1/1", f"--extend={extension}", "--", "printenv"]
    environment = {**os.environ, **before}
    done = subprocess.run([*command, "BETTER"], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == f"{after}\n"


def test_braces_of_the_user_s_own_stay() -> None:
    own = ["echo", "{}", "{other}", '{"json": 1}']
    assert expand_command(own, SPEC.id, LAYOUT, ["q"]) == own


def test_what_each_worker_finds_in_its_environment() -> None:
    found = worker_environment(SPEC, POOL, LAYOUT, 3, ["high", "low"])
    assert found["BACKSTEP_WORKER"] == "mail/1.0-aaaaaaaa/w1/3"
    assert found["BACKSTEP_QUEUES"] == "high,low"
    assert found["BACKSTEP_ROOT"] == "/opt/backstep/mail"
    assert found["BACKSTEP_RELEASE"] == "1.0-aaaaaaaa"
    assert found["BACKSTEP_CONFIG"] == "/opt/backstep/mail/releases/1.0-aaaaaaaa/config"


@given(
    st.dictionaries(
        st.from_regex(r"[A-Z_][A-Z0-9_]{0,5}", fullmatch=True),
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
        max_size=4,
    )
)
def test_an_environment_file_gives_back_every_value_in_posix_words(variables: dict[str, str]) -> None:
    text = environment_file(variables).decode()
    assert dict(word.split("=", 1) for word in shlex.split(text)) == variables


def test_the_link(tmp_path: Path) -> None:
    link = tmp_path / "current"
    assert read_link(link) is None
    link.symlink_to("releases/1.0-aaaaaaaa")
    assert read_link(link) == "1.0-aaaaaaaa"
    link.unlink()
    link.mkdir()
    assert read_link(link) is None
