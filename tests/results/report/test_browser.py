"""The page in headless Chromium: it fits a screen and a phone, asks for nothing, its filters filter, trees open, tables
sort. One page comes from tiny real runs. Skipped without Chromium or playwright.

Pictures are kept in tests/artefacts, or where TTPA_ARTEFACTS says.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.results.report.conftest import NASTY, Html, Lab
from ttpa.io import read_jsonl, write_jsonl
from ttpa.results.report.report import main

ARTEFACTS = Path(os.environ.get("TTPA_ARTEFACTS") or Path(__file__).resolve().parents[2] / "artefacts")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync")
RUN = "-m name=real debug=smoke sampler=tps,mcts logger=csv trainer.log_every_n_steps=1 baseline=true trainer.threads=1"


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two real runs, which give token paths and search trees."""
    folder = tmp_path_factory.mktemp("runs")
    words = [sys.executable, "-m", "ttpa.cli", *RUN.split()]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    out, debug = folder / "real.html", folder / "debug"
    assert main(["real", f"out={out}", f"results={debug / 'results'}", f"store={debug / 'store'}", "samples=6"]) == 0
    return out


def test_real_runs_fill_the_page(real: Path) -> None:
    page = Html(real.read_text())
    assert {"errors", "answers", "curves", "pairs", "trees", "stages", "settings"} <= page.sections
    for words in ("search trees", "token paths", "Probability of the marked token", "Loss", "built"):
        assert words in page.text, words
    for gone in ("not in the store", "is damaged", "parted by characters"):
        assert gone not in page.text
    assert len(page.answers["policies"]) == 3 and all(target >= 0 for *_, target in page.answers["samples"])


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with sync_api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS), timeout=60_000)
        yield started
        started.close()


@pytest.fixture
def open_page(chromium: Any, lab: Lab, report: Callable[..., str]) -> Iterator[Callable[..., Any]]:
    """Opens a page, by default that of the lab; at the end nothing may have been said, asked for or popped up."""
    contexts, said, asked = [], list[str](), list[str]()

    def opened(file: Path | None = None, width: int = 1400, scheme: str = "light", place: str = "") -> Any:
        if file is None:
            report("made")
        context = chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((file or lab.root / "page.html").as_uri() + place)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if not url.partition("#")[0].endswith(".html") and url != "data:,"] == []


WIDTH = "document.documentElement.scrollWidth"
GROUND = "getComputedStyle(document.documentElement).backgroundColor"
WORDS = """() => {
    const texts = [...document.querySelectorAll("figure svg text")];
    const leaves = text => {
        const a = text.getBoundingClientRect(), b = text.ownerSVGElement.getBoundingClientRect();
        return a.left < b.left - 2 || a.right > b.right + 2 || a.top < b.top - 2 || a.bottom > b.bottom + 2;
    };
    return [texts.length, Math.min(...texts.map(one => parseFloat(getComputedStyle(one).fontSize))),
            texts.filter(leaves).map(one => one.textContent)];
}"""


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (390, "dark"), (320, "light")])
def test_it_fits(width: int, scheme: str, real: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(real, width, scheme)
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=ARTEFACTS / f"report-{width}-{scheme}.png", full_page=True)
    open_all(page)
    page.wait_for_function("[...document.querySelectorAll('figure')].every(one => one.querySelector('svg'))")
    assert page.evaluate(WIDTH) <= width
    assert page.evaluate(GROUND) == ("rgb(20, 24, 29)" if scheme == "dark" else "rgb(255, 255, 255)")
    page.locator("#browser button[data-step='1']").click()
    assert page.inner_text("#browser .pager span").startswith("page 2 of") and len(shown(page)[1]) == 5
    count, small, outside = page.evaluate(WORDS)  # words in pictures: pixels, and those that leave their picture
    assert count > 50 and small > 10.9 and outside == []
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(GROUND) == "rgb(255, 255, 255)"


def test_pictures_are_drawn_to_scale_in_the_policies_colours(lab: Lab, open_page: Callable[..., Any]) -> None:
    for objective, right in (("dpo", 2), ("rft", 4)):
        lab.row(objective=objective, right=right)  # the warm-up has 25 %, these 50 and 100
    page = open_page()
    marks = page.eval_on_selector_all(
        "#accuracy figure:first-child .point", "all => all.map(one => [Number(one.getAttribute('x')), one.style.fill])"
    )
    (x0, x1, x2), colours = zip(*marks, strict=True)
    assert (x2 - x0) == pytest.approx(3 * (x1 - x0)) and colours == ("var(--c1)", "var(--c2)", "var(--c3)")


def test_a_wide_table_keeps_its_first_column(lab: Lab, open_page: Callable[..., Any]) -> None:
    for number in range(14):
        lab.row(settings={"objective.beta": f"{number} {40 * 'x'}"}, objective="dpo")
    page = open_page(width=390)
    box = page.locator("#settings .scroll").first
    assert page.evaluate(WIDTH) <= 390 and box.evaluate("one => one.scrollWidth > one.clientWidth")
    box.evaluate("one => { one.scrollLeft = one.scrollWidth; }")
    parts = "[one, one.querySelector('tbody th'), one.querySelector('tbody td:last-child')]"
    (left, right), head, last = box.evaluate(
        f"one => {parts}.map(x => x.getBoundingClientRect()).map(r => [r.left, r.right])"
    )
    assert abs(head[0] - left) < 1 and abs(last[1] - right) < 2 and last[0] >= head[1] - 1  # nothing is lost below it


def open_all(page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")


def said(page: Any, words: str) -> None:
    """Waits until the browser's sentence begins so: an address changes before the page does."""
    status = "document.querySelector('#browser [role=status]').textContent"
    page.wait_for_function(f"words => {status}.startsWith(words)", arg=words)


def shown(page: Any) -> tuple[str, list[list[str]]]:
    """The sentence of the browser, and of each card on its page the sample and the verdicts of its answers."""
    card = "c => [c.querySelector('code').textContent, ...[...c.querySelectorAll('.verdict')].map(v => v.textContent)]"
    cards = page.eval_on_selector_all("#browser .card", f"all => all.map({card})")
    return page.inner_text("#browser [role=status]"), cards


def test_filters_choose_answers(lab: Lab, open_page: Callable[..., Any]) -> None:
    lab.row(objective="dpo", right=2)
    lab.row(objective="rft", right=3)
    page = open_page()
    form = page.locator("#browser form")
    form.locator("[name=policy]").select_option(label="dpo")
    form.locator("[name=error]").select_option("right")
    assert shown(page) == ("2 of 15 answers, to 2 of 5 questions", [["q0", "right"], ["q1", "right"]])
    form.locator("[name=error]").select_option("tool_name")
    form.locator("[name=band]").select_option("hard")
    form.locator("[name=others]").check()  # the same question, answered by the other policies
    assert shown(page) == ("1 of 15 answers, to 1 of 5 questions", [["q3", *["parameter value, tool name"] * 3]])
    form.evaluate("form => form.reset()")
    form.locator("[name=text]").fill("PLEASE Q2")
    assert shown(page)[1] == [["q2", "parameter value", "parameter value", "right"]]
    assert form.locator("[name=seed]").is_hidden()  # there is one seed
    card = page.inner_text("#browser .card")
    assert 'f(a="plain")' in card and "2 tools: tool plain, second" in card


def test_each_number_of_the_error_table_opens_its_answers(lab: Lab, open_page: Callable[..., Any]) -> None:
    lab.row(right=2)
    page = open_page(place="#answers:1:tool_name")
    assert shown(page)[1] == [["q3", "parameter value, tool name"]]
    links = page.locator("#errors td a").all()
    assert len(links) == 14
    for link in links:
        share = float(link.inner_text())
        link.click()
        said(page, f"{round(share * 4 / 100)} of 10 answers")
    links[-1].click()  # after another filter was chosen the same link works again
    page.locator("[name=policy]").select_option(label="all policies")
    page.locator("#errors th a").last.click()
    said(page, "2 of 10 answers, to 2 of 5 questions")
    assert page.locator("[name=error]").input_value() == "wrong"


def test_tables_sort_by_click_and_by_keyboard(lab: Lab, open_page: Callable[..., Any]) -> None:
    for number, objective in enumerate(("dpo", "rft", "gold")):
        lab.row(objective=objective, right=number)
    page = open_page()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"  # the first key skips what stands before it
    texts = "rows => rows.map(row => [row.cells[0].textContent, row.cells[6].textContent])"
    heads = page.locator("#errors thead th")
    for at, key, order in ((0, "Enter", "ascending"), (0, "Space", "descending"), (6, "Enter", "ascending")):
        heads.nth(at).locator("button").focus()
        page.keyboard.press(key)
        labels, shares = zip(*page.eval_on_selector_all("#errors tbody tr", texts), strict=True)
        assert heads.nth(at).get_attribute("aria-sort") == order
        assert at or list(labels) == sorted(labels, reverse=order == "descending")
    assert heads.nth(0).get_attribute("aria-sort") == "none"
    assert shares == ("50.0", "75.0", "75.0", "100.0")  # as numbers


SHAPE = """([nodes, answers]) => {
    const of = one => [one.text, one.note, ...one.children.map(of)];
    return of(nodes ? searchTree(nodes, answers) : tokenTree(answers));
}"""


def answers(*texts: str, choices: Any = ()) -> list[dict[str, Any]]:
    """Answers of a letter a token."""
    given = [{"text": text, "pieces": list(text), "token_ids": list(map(ord, text))} for text in texts]
    same = {"choices": choices, "logps": [-0.5] * 999}
    return [{**one, "value": 1 - k / 2, "exact": not k, **same} for k, one in enumerate(given)]


def node(number: int, parent: int | None, text: str, *answers: int) -> dict[str, Any]:
    value = {"prior": 0.5, "visits": 3, "value": 1.5, "terminal": False}
    return {"id": number, "parent": parent, "text": text, "answers": answers, **value}


def end(text: str, note: str) -> list[str]:
    return [text, f"1 answer ends here: {note}"]


DEEP, RIGHT = "ab" * 400, "score 1.000 (exact)"
PARTED = answers("fabc", "fabd", "fx", choices=[(1, [("a", 0.5), ("x", 0.4)])])
CUT = [["ab", "", end("c", RIGHT), end("d", "score 0.500")], end("x", "score 0.000")]
NODES = [node(0, None, ""), node(1, 0, "f(", 0, 1), node(2, 1, "a", 0, 9), node(3, 1, "b", 1)]
FOUND = [["a", f"answer 0, {RIGHT}: f(a"], ["b", "answer 1, score 0.500: f(b"]]  # there is no answer 9
TREES: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "cut where answers part and at choices": (None, PARTED, ["f", "choice here: “a” 0.500, “x” 0.400", *CUT]),
    "equal answers": (None, answers("ab", "ab"), ["ab", f"2 answers end here: {RIGHT}"]),
    "a search": (NODES, answers("f(a", "f(b"), ["f(", "", *FOUND]),
}


def test_trees_nest_where_there_was_a_choice(lab: Lab, open_page: Callable[..., Any]) -> None:
    lab.row()
    page = open_page()
    for name, (nodes, given, below) in TREES.items():
        assert page.evaluate(SHAPE, [nodes, given]) == ["(start of the answer)", "", below], name
    many = answers(DEEP, choices=[(at, [("a", 0.5)]) for at in range(1, len(DEEP))])
    for nodes, given, levels in ((None, many, 41), ([node(k, k - 1 if k else None, "x") for k in range(90)], [], 40)):
        tree, depth = page.evaluate(SHAPE, [nodes, given]), 0
        while len(tree) > 2:
            tree, depth = tree[2], depth + 1
        assert depth == levels
    tree = page.locator("details.tree").last
    tree.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert "answer 0, score 1.000 (exact)" in tree.locator(".spans").inner_text()
    for button, count in (("close all", 0), ("open all", 1)):
        tree.get_by_role("button", name=button).click()
        assert tree.locator(".spans details[open]").count() == count


def test_hostile_text_does_nothing(lab: Lab, open_page: Callable[..., Any]) -> None:
    lab.text = NASTY
    for sampler in ("tps", "mcts"):
        lab.row(sampler=sampler)
    rows = lab.folder("evaluate/0") / "rows.jsonl"
    write_jsonl(rows, [{**row, "errors": [NASTY], "band": NASTY} for row in read_jsonl(rows)])
    page = open_page(width=320)
    open_all(page)
    assert page.evaluate(WIDTH) == 320
    assert page.locator("img").count() == 0 and page.locator("script").count() == 2
    for part in ("#pairs", "#trees .spans", "#browser .card", "#browser form"):
        assert "onerror=alert(2)" in page.locator(part).first.text_content()
    assert "\\u202e" in page.inner_text("#browser .card") and "\u202e" not in page.inner_text("#browser .card")
