"""The page in headless Chromium: it fits a screen and a phone, asks for nothing, its filters filter, trees open, tables
sort. One page comes from tiny real runs. Skipped without Chromium or playwright.

Pictures are kept in tests/artefacts, or where TTPA_ARTEFACTS says.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.results.report.conftest import NASTY, Html, Lab
from ttpa.io import read_jsonl, write_jsonl
from ttpa.results.report.report import main

ROOT = Path(__file__).resolve().parents[3]
ARTEFACTS = Path(os.environ.get("TTPA_ARTEFACTS") or ROOT / "tests" / "artefacts")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync")
SMALL = (
    "data.warmup_samples=80", "data.explore_samples=12", "data.test_per_band=4", "data.test_unseen=2",
    "data.validation_per_band=2", "model.hidden=16", "model.heads=2", "model.layers=1", "model.feed_forward=32",
    "recipe.warmup.steps=6", "recipe.max_new_tokens=12", "pairs=released", "logger=csv",
    "trainer.log_every_n_steps=1", "trainer.threads=1",
)  # fmt: skip
ONLINE = (
    "objective=grpo", "sampler=group8", "scorer=slm_json", "recipe.online.batch_size=2", "recipe.online.steps=3",
    "trainer.answers_every_steps=1",
)  # fmt: skip
PAIRS = "recipe.align.steps=3"
RUNS = ((PAIRS, "sampler=tps"), (PAIRS, "sampler=mcts", "objective=dpo"), ONLINE)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of three real runs: pairs of two samplers, and answers drawn while training."""
    folder = tmp_path_factory.mktemp("runs")
    places = [f"paths.{name}={folder / name}" for name in ("store", "results", "runs")]
    for words in RUNS:
        done = subprocess.run([sys.executable, "-m", "ttpa.cli", "name=real", *SMALL, *places, *words], cwd=folder,
                              capture_output=True, text=True, timeout=280)  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
    out = folder / "real.html"
    assert main(["real", f"out={out}", f"results={folder / 'results'}", f"store={folder / 'store'}", "samples=6"]) == 0
    return out


def test_real_runs_fill_the_page(real: Path) -> None:
    page = Html(real.read_text())
    sections = {attributes["id"] for tag, attributes in page.tags if tag == "section"}
    assert {
        "accuracy",
        "errors",
        "answers",
        "heat",
        "curves",
        "pairs",
        "trees",
        "drawn",
        "stages",
        "settings",
    } <= sections
    for words in ("search trees", "token paths", "first token", "Probability of the marked token", "Loss", "built", "reused by",
                  "Mean reward of drawn answers", "groups, drawn at random"):  # fmt: skip
        assert words in page.text, words
    for gone in ("not in the store", "is damaged", "parted by characters"):
        assert gone not in page.text
    assert len(page.answers["policies"]) == 4 and all(target >= 0 for *_, target in page.answers["samples"])


# --- Chromium --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with sync_api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS), timeout=60_000)
        yield started
        started.close()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page in a fresh profile; at the end of the test nothing may have been said, asked for or popped up."""
    contexts, said, asked = [], list[str](), list[str]()

    def opened(file: Path, width: int = 1400, scheme: str = "light", place: str = "") -> Any:
        context = chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri() + place)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if not url.partition("#")[0].endswith(".html") and url != "data:,"] == []


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (1400, "dark"), (390, "light"), (320, "dark")])
def test_it_fits(width: int, scheme: str, real: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(real, width, scheme)
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=ARTEFACTS / f"report-{width}-{scheme}.png", full_page=True)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    dark = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert dark == ("rgb(20, 24, 29)" if scheme == "dark" else "rgb(255, 255, 255)")
    small, outside = page.evaluate(
        """() => {
            const texts = [...document.querySelectorAll("figure svg text")];
            const size = text => {
                const m = text.getScreenCTM(), scale = Math.sqrt(Math.abs(m.a * m.d - m.b * m.c));
                return parseFloat(getComputedStyle(text).fontSize) * scale;
            };
            const leaves = text => {
                const a = text.getBoundingClientRect(), b = text.ownerSVGElement.getBoundingClientRect();
                return a.left < b.left - 2 || a.right > b.right + 2 || a.top < b.top - 2 || a.bottom > b.bottom + 2;
            };
            return [Math.min(...texts.map(size)), texts.filter(leaves).map(text => text.textContent)];
        }"""
    )
    assert small > 10.9 and outside == []  # words in pictures: pixels, and those that leave their picture


@pytest.mark.parametrize("width", [1400, 390])
def test_a_wide_table_scrolls_in_its_box_and_keeps_its_first_column(
    width: int, lab: Lab, report: Callable[..., str], open_page: Callable[..., Any]
) -> None:
    for number in range(14):
        lab.row(settings={"objective.beta": f"{number} {40 * 'x'}"}, objective="dpo")
    report("made")
    page = open_page(lab.root / "page.html", width)
    box = page.locator("#settings .scroll").first
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert box.evaluate("one => one.scrollWidth > one.clientWidth")
    box.evaluate("one => { one.scrollLeft = one.scrollWidth; }")
    where = "one => [one, one.querySelector('tbody th'), one.querySelector('tbody td:last-child')].map(x => x.getBoundingClientRect()).map(r => [r.left, r.right])"
    (left, right), head, last = box.evaluate(where)
    assert abs(head[0] - left) < 1 and abs(last[1] - right) < 2 and last[0] >= head[1] - 1  # nothing is lost below it


def shown(page: Any) -> tuple[str, list[list[str]]]:
    """The sentence of the browser, and of each card on its page the sample and the verdicts of its answers."""
    cards = page.eval_on_selector_all(
        "#browser .card",
        "all => all.map(c => [c.querySelector('code').textContent, ...[...c.querySelectorAll('.verdict')].map(v => v.textContent)])",
    )
    return page.inner_text("#browser [role=status]"), cards


def test_filters_choose_answers(lab: Lab, report: Callable[..., str], open_page: Callable[..., Any]) -> None:
    lab.row(objective="dpo", right=2)
    lab.row(objective="rft", right=3)
    report("made")
    page = open_page(lab.root / "page.html")
    form = page.locator("#browser form")
    assert shown(page)[0] == "15 of 15 answers, to 5 of 5 questions"
    form.locator("[name=policy]").select_option(label="dpo")
    form.locator("[name=error]").select_option("right")
    assert shown(page) == ("2 of 15 answers, to 2 of 5 questions", [["q0", "right"], ["q1", "right"]])
    form.locator("[name=error]").select_option("tool_name")
    both = "parameter value, tool name"
    assert shown(page) == ("2 of 15 answers, to 2 of 5 questions", [["q3", both], ["q4", both]])
    form.locator("[name=band]").select_option("hard")
    form.locator("[name=others]").check()  # the same question, answered by the other policies
    assert shown(page) == ("1 of 15 answers, to 1 of 5 questions", [["q3", both, both, both]])
    form.evaluate("form => form.reset()")
    form.locator("[name=text]").fill("PLEASE Q2")
    assert shown(page) == (
        "3 of 15 answers, to 1 of 5 questions",
        [["q2", "parameter value", "parameter value", "right"]],
    )
    assert form.locator("[name=seed]").is_hidden()  # there is one seed
    assert 'f(a="plain")' in page.inner_text("#browser .card") and "2 tools: tool plain, second" in page.inner_text(
        "#browser .card"
    )


def test_each_number_of_the_error_table_opens_its_answers(
    lab: Lab, report: Callable[..., str], open_page: Callable[..., Any]
) -> None:
    lab.row(right=2)
    report("made")
    page = open_page(lab.root / "page.html")
    assert page.locator("#errors td a").count() == 14
    for link in page.locator("#errors td a").all():
        share = float(link.inner_text())
        link.click()
        page.wait_for_function("hash => location.hash === hash", arg=link.get_attribute("href"))
        assert shown(page)[0].startswith(f"{round(share * 4 / 100)} of 10 answers"), link.get_attribute("href")
    link.click()  # after another filter was chosen the same link works again
    page.locator("[name=policy]").select_option(label="all policies")
    page.locator("#errors th a").last.click()
    page.wait_for_function("document.querySelector('[name=error]').value === 'wrong'")
    assert shown(page)[0] == "2 of 10 answers, to 2 of 5 questions"
    assert shown(open_page(lab.root / "page.html", place="#answers:1:tool_name"))[1] == [
        ["q3", "parameter value, tool name"]
    ]


def test_many_answers_stay_usable(lab: Lab, report: Callable[..., str], open_page: Callable[..., Any]) -> None:
    """1,200 samples, five policies and their warm-up: pages of questions are drawn on demand."""
    lab.samples = 1200
    for number, objective in enumerate(("dpo", "rft", "gold", "simpo", "grpo")):
        lab.row(objective=objective, right=200 * number)
    text = report("made")
    assert len(text) < 3_000_000
    page = open_page(lab.root / "page.html", 390)
    assert shown(page)[0] == "7,206 of 7,206 answers, to 1,201 of 1,201 questions" and len(shown(page)[1]) == 5
    page.locator("#browser button[data-step='1']").click()
    assert [card[0] for card in shown(page)[1]] == [f"q{number}" for number in range(5, 10)]
    start = time.monotonic()
    page.locator("[name=text]").fill("q119")
    assert "to 11 of 1,201 questions" in shown(page)[0]  # q119 and q1190 to q1199
    assert time.monotonic() - start < 5


def test_tables_sort_by_click_and_by_keyboard(
    lab: Lab, report: Callable[..., str], open_page: Callable[..., Any]
) -> None:
    for number, objective in enumerate(("dpo", "rft", "gold")):
        lab.row(objective=objective, right=number)
    report("made")
    page = open_page(lab.root / "page.html")
    page.eval_on_selector("#errors table", "table => table.id = 'sorted'")

    def column(number: int) -> list[str]:
        return page.eval_on_selector_all(
            "#sorted tbody tr", f"rows => rows.map(row => row.cells[{number}].textContent)"
        )

    head = page.locator("#sorted thead th").first
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending" and column(0) == sorted(column(0))
    page.keyboard.press("Enter")  # the button has the focus
    assert head.get_attribute("aria-sort") == "descending" and column(0) == sorted(column(0), reverse=True)
    numbers = page.locator("#sorted thead th").nth(6)
    numbers.locator("button").focus()
    page.keyboard.press("Space")
    assert (head.get_attribute("aria-sort"), numbers.get_attribute("aria-sort")) == ("none", "ascending")
    assert column(6) == ["50.0", "75.0", "75.0", "100.0"]  # as numbers


def test_trees_open_and_close(real: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(real)
    page.evaluate("document.querySelectorAll('#trees details.folded').forEach(one => one.open = true)")
    tree = page.locator("details.tree").last
    assert not tree.locator(".spans").first.is_visible()
    tree.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert tree.locator(".spans").first.is_visible()
    inner = page.locator("details.tree:has(.spans ul)").first
    inner.evaluate("one => one.open = true")
    inner.get_by_role("button", name="close all").click()
    assert inner.locator(".spans details[open]").count() == 0
    inner.get_by_role("button", name="open all").click()
    assert inner.locator(".spans details:not([open])").count() == 0


def test_the_first_key_leads_to_the_content_and_paper_is_white(real: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(real, scheme="dark")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"


def test_hostile_text_does_nothing(lab: Lab, report: Callable[..., str], open_page: Callable[..., Any]) -> None:
    lab.text = NASTY
    for sampler in ("tps", "mcts"):
        lab.row(sampler=sampler)
    rows = lab.store / lab.stages["evaluate/0/plain"] / "rows.jsonl"
    write_jsonl(rows, [{**row, "errors": [NASTY], "band": NASTY} for row in read_jsonl(rows)])
    report("made")
    page = open_page(lab.root / "page.html", 320)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    assert page.locator("img").count() == 0 and page.locator("script").count() == 2
    for part in ("#pairs", "#browser .card", "#browser form"):
        assert "onerror=alert(2)" in page.text_content(part)
    assert "\\u202e" in page.inner_text("#browser .card") and "\u202e" not in page.inner_text("#browser .card")
