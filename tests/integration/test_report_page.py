# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report as a real browser shows it: on a wide screen and a phone, in light and dark, printed, and offline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.backstep.workers.plugins.plugin_utils.report import write
from ansible_collections.backstep.workers.plugins.plugin_utils.report_journal import data_from_journals

from tests.support.chromium import Chromium
from tests.support.reports import NEW, OLD, answer, confirmed, course, observed, staged, switched, went_back

QUEUE = {"waiting": 3, "scheduled": 0, "executing": None, "retrying": 0, "dead": 7, "parked": 0, "workers": 2}
LONG = "w1: canary: mail/2.0-bbbbbbbb/w1/1/4711 " + "finished_nothing_in_" * 20
NOTHING_NEEDS_CARE: dict[str, Any] = {"tasks": [], "more": 0}
CASES: dict[str, dict[str, Any]] = {
    "went back": {
        "w1": answer([*went_back(), *observed()], OLD),
        "w2": answer([*went_back(5, 41, reason=LONG), *observed()], OLD),
        "w3": answer(staged(), OLD),
    },
    "good": {
        "w1": answer([*confirmed(), *observed(course=course(back=0), care=NOTHING_NEEDS_CARE, noticed=None)], NEW)
    },
    "guard": {"w1": answer(went_back(by="guard"), OLD), "w2": answer(switched(), NEW), "w3": None},
    "hundred": {
        f"worker-{number:03d}": answer((went_back(4 + number / 10) if number < 60 else staged()) + observed(), OLD)
        for number in range(100)
    },
}
# Of every text that can be seen, with the drawn ones: the contrast with what is behind it, by WCAG's formula.
CONTRAST = """
(() => {
  const parts = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = rgb => rgb.slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = node => {
    if (node.matches('svg .phase')) return parts(getComputedStyle(node.previousElementSibling).fill);
    if (node.matches('svg text.event')) return parts(getComputedStyle(node.previousElementSibling).fill);
    for (let at = node; at; at = at.parentElement) {
      const found = parts(getComputedStyle(at).backgroundColor);
      if (found.length === 3 || found[3] > 0) return found;
    }
    return null;
  };
  const bad = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const node = texts.currentNode.parentElement, said = texts.currentNode.data.trim();
    const box = node.getBoundingClientRect();
    if (!said || node.tagName === 'title' || node.tagName === 'TITLE' || !box.width) continue;
    const style = getComputedStyle(node), svg = node.namespaceURI.endsWith('svg');
    const ground = behind(node);
    if (!ground) { bad.push('nothing behind: ' + said); continue; }
    const [a, b] = [light(parts(svg ? style.fill : style.color)), light(ground)].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) bad.push(said + ': ' + ((a + .05) / (b + .05)).toFixed(2));
  }
  const strokes = [...document.querySelectorAll('path.line')].map(line => {
    const [a, b] = [light(parts(getComputedStyle(line).stroke)), light(parts(getComputedStyle(document.body)
      .backgroundColor))].sort((x, y) => y - x);
    return (a + .05) / (b + .05);
  });
  const on = parts(getComputedStyle(Object.assign(document.body.appendChild(document.createElement('b')),
    {style: 'color: var(--on)'})).color);
  for (const swatch of document.querySelectorAll('.legend i[class^=p]')) {
    const ground = parts(getComputedStyle(swatch).backgroundColor);
    const [a, b] = [light(on), light(ground)].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) bad.push(swatch.className + ': ' + ((a + .05) / (b + .05)).toFixed(2));
  }
  return bad.concat(strokes.filter(found => found < 3).map(found => 'a line: ' + found.toFixed(2)));
})()
"""
# Labels of one axis that lie on each other, or stick out of the drawing.
COLLIDING = """
[...document.querySelectorAll('svg')].flatMap(svg => {
  const edge = svg.getBoundingClientRect();
  const labels = [...svg.querySelectorAll(':scope > text.tick[text-anchor]')].map(text => text.getBoundingClientRect())
    .filter(box => box.width);
  return labels.filter((box, i) => box.left < edge.left - 1 || box.right > edge.right + 1
    || (i && box.left < labels[i - 1].right)).map(box => box.left + '..' + box.right);
})"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """One browser for all."""
    with Chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture(params=CASES)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The page of one rollout."""
    data = data_from_journals("mail", CASES[request.param], {"queues": {"mail": QUEUE}}, None)
    return Path(write(data, str(tmp_path))[0])


@pytest.mark.parametrize("width", [360, 1100])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_can_be_read_and_needs_nothing_else(file: Path, dark: bool, width: int, chromium: Chromium) -> None:
    with chromium.page(file, width=width, dark=dark) as page:
        wide, ground = page.value(
            "[document.documentElement.scrollWidth, getComputedStyle(document.body).backgroundColor]"
        )
        assert wide <= width, "nobody has to scroll sideways"
        assert (ground == "rgb(255, 255, 255)") == (not dark)
        assert page.value(CONTRAST) == []
        assert page.value(COLLIDING) == []
        assert page.complaints() == []
        assert page.requests() == [file.as_uri()], "it opens offline"


def test_paper_is_white_in_the_dark_too(file: Path, chromium: Chromium) -> None:
    with chromium.page(file, width=720, dark=True, media="print") as page:
        assert page.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.value(CONTRAST) == []


def test_it_can_be_printed_and_filled_in(file: Path, tmp_path: Path, chromium: Chromium) -> None:
    with chromium.page(file) as page:
        page.printed(tmp_path / "report.pdf")
        assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
        page.value("document.querySelector('.blank').focus()")
        page.ask("Input.insertText", text="Nobody could sign up for 40 s.")
        assert "sign up" in page.value("document.documentElement.outerHTML"), "it is kept when the page is saved"
        assert page.complaints() == []


def test_a_hostile_text_runs_nothing(tmp_path: Path, chromium: Chromium) -> None:
    attack = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    events = [*went_back(reason=attack), *observed()]
    data = data_from_journals("mail", {f"w1{attack}": answer(events, OLD)}, {"queues": {attack: QUEUE}}, None)
    with chromium.page(Path(write(data, str(tmp_path))[0])) as page:
        assert page.value("document.title") == "Pool mail, rollout 2: deploy"
        assert page.value("document.querySelectorAll('img, script').length") == 0
