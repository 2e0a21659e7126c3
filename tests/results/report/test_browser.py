"""The page in headless Chromium, made from tiny real runs: it renders, says nothing on the console, asks for nothing,
trees open, tables sort, and it fits a phone. Skipped without Chromium or playwright.

Pictures of it are kept in tests/artefacts, or where TTPA_ARTEFACTS says.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.results.report.conftest import NASTY, Html, Lab

ROOT = Path(__file__).resolve().parents[3]
ARTEFACTS = Path(os.environ.get("TTPA_ARTEFACTS") or ROOT / "tests" / "artefacts")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE_MS = 20_000
SMALL = (
    "data.warmup_samples=80", "data.explore_samples=12", "data.test_per_band=4", "data.test_unseen=2",
    "data.validation_per_band=2", "model.hidden=16", "model.heads=2", "model.layers=1", "model.feed_forward=32",
    "recipe.warmup.steps=6", "recipe.align.steps=3", "recipe.max_new_tokens=12", "pairs=released",
    "logger=csv", "trainer.log_every_n_steps=1", "trainer.threads=1",
)  # fmt: skip
GRID = [("name=grid", f"sampler={one}", f"objective={other}") for one in ("tps", "mcts") for other in ("dpo", "rft")]
ONLINE = (
    "name=online", "objective=grpo", "sampler=group8", "scorer=slm_json", "recipe.online.batch_size=2",
    "recipe.online.steps=3", "recipe.online.epochs=null", "trainer.answers_every_steps=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results and the store of a small sweep and of a run that draws its answers while it trains."""
    from hydra import compose, initialize_config_module
    from omegaconf import open_dict

    from ttpa.results.view import ScreenView
    from ttpa.run import config, pipeline

    folder = tmp_path_factory.mktemp("runs")
    places = [f"paths.{name}={folder / name}" for name in ("store", "results", "runs")]
    for words in (*GRID, ONLINE):
        with initialize_config_module("ttpa.conf", version_base="1.3"):
            cfg = compose("config", overrides=[*SMALL, *places, *words], return_hydra_config=True)
        with open_dict(cfg):
            cfg.choices = {
                name: choice for name, choice in cfg.hydra.runtime.choices.items() if name in config.IDENTITY
            }
            del cfg.hydra
        with ScreenView(io.StringIO()) as view:
            pipeline.run(cfg, view)
    return folder


@pytest.fixture(scope="module")
def pages(runs: Path) -> dict[str, Path]:
    """Name -> page of the sweep, of the online run, and of one row."""
    from ttpa.results.report import cli

    row = sorted((runs / "results").glob("grid-*.jsonl"))[0]
    for target, name in (("grid", "grid"), ("online", "online"), (str(row), "row")):
        words = [f"out={runs / name}.html", f"results={runs / 'results'}", f"store={runs / 'store'}", "samples=6"]
        cli.report(cli.parse([target, *words]))
    return {name: runs / f"{name}.html" for name in ("grid", "online", "row")}


def sections(page: Path) -> set[str]:
    return {attributes["id"] for tag, attributes in Html(page.read_text()).tags if tag == "section"}


def test_real_runs_fill_every_section(pages: dict[str, Path]) -> None:
    every = {"what", "graph", "accuracy", "errors", "curves", "settings", "provenance"}
    assert sections(pages["grid"]) == every | {"heat", "pairs", "trees"}
    assert sections(pages["online"]) == every | {"answers"}
    assert sections(pages["row"]) == every | {"pairs", "trees"}


def test_real_runs_are_told_whole(pages: dict[str, Path]) -> None:
    text = Html(pages["grid"].read_text()).text
    for words in (
        "6 of", "search trees", "token paths", "visits", "first token", "probability of the marked token",
        "Negative log-likelihood", "built", "found",
    ):  # fmt: skip
        assert words in text, words
    for gone in ("not in the store", "is damaged", "are missing"):
        assert gone not in text
    text = Html(pages["online"].read_text()).text
    assert "Mean reward of drawn answers" in text and "groups, drawn at random" in text
    assert max(page.stat().st_size for page in pages.values()) < 500_000


# --- Chromium --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with sync_api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS), timeout=60_000)
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page in a fresh profile; at the end of the test nothing may have been said, asked for or popped up."""
    contexts, said, asked = [], list[str](), list[str]()

    def opened(file: Path, width: int = 1200, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri(), timeout=PATIENCE_MS)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if not url.endswith(".html") and url != "data:,"] == []


@pytest.mark.parametrize("name", ["grid", "online", "row"])
@pytest.mark.parametrize(
    ("look", "width", "scheme"), [("light", 1200, "light"), ("dark", 1200, "dark"), ("phone", 360, "light")]
)
def test_it_renders_and_fits(
    name: str, look: str, width: int, scheme: str, pages: dict[str, Path], open_page: Callable[..., Any]
) -> None:
    page = open_page(pages[name], width, scheme)
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=ARTEFACTS / f"{name}-{look}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    dark = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert dark == ("rgb(20, 24, 29)" if scheme == "dark" else "rgb(255, 255, 255)")
    for picture in page.query_selector_all("figure.chart svg"):
        box = picture.bounding_box()
        assert box["width"] > 200 and box["height"] > 50
    sizes = page.evaluate(
        """() => [...document.querySelectorAll("figure svg text")].map(text => {
            const m = text.getScreenCTM(), scale = Math.sqrt(Math.abs(m.a * m.d - m.b * m.c));
            return parseFloat(getComputedStyle(text).fontSize) * scale;
        })"""
    )
    assert min(sizes) > 10.9, "of words in pictures, in pixels"


def test_the_narrowest_phone_scrolls_boxes_and_not_the_page(
    pages: dict[str, Path], open_page: Callable[..., Any]
) -> None:
    page = open_page(pages["grid"], 320)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == 320


def test_words_of_a_picture_stay_inside_and_apart(pages: dict[str, Path], open_page: Callable[..., Any]) -> None:
    """No label leaves its picture, no label of an axis lies on the next one, no box of the graph is too small."""
    page = open_page(pages["grid"])
    outside = page.evaluate(
        """() => [...document.querySelectorAll("figure svg text")].filter(text => {
            const a = text.getBoundingClientRect(), b = text.ownerSVGElement.getBoundingClientRect();
            return a.left < b.left - 2 || a.right > b.right + 2 || a.top < b.top - 2 || a.bottom > b.bottom + 2;
        }).map(text => text.textContent)"""
    )
    assert outside == []
    wide = page.evaluate(
        """() => [...document.querySelectorAll(".box")].filter(box => {
            const right = box.querySelector("rect").getBoundingClientRect().right;
            return [...box.querySelectorAll("text")].some(text => text.getBoundingClientRect().right > right - 2);
        }).map(box => box.textContent)"""
    )
    assert wide == []


WIDE_WORDS = ("mcts_small", "WWWWmmmm", "released_MM", "0.6666")


@pytest.mark.parametrize("width", [1200, 360])
def test_long_names_stay_in_their_boxes_and_break_at_spaces(
    width: int, lab: Lab, report: Callable[..., str], open_page: Callable[..., Any]
) -> None:
    for sampler in ("mcts_small WWWWmmmm released_MM 0.6666", "WWWWmmmm mcts_small WWWWmmmm MMMM WWWW MMMM WWWW"):
        for objective in ("dpo", "rft"):
            lab.row(sampler=sampler, objective=objective)
    report("made")
    page = open_page(lab.root / "page.html", width)
    wide = page.evaluate(
        """() => [...document.querySelectorAll(".box")].filter(box => {
            const right = box.querySelector("rect").getBoundingClientRect().right;
            return [...box.querySelectorAll("text")].some(text => text.getBoundingClientRect().right > right - 2);
        }).map(box => box.textContent)"""
    )
    assert wide == []
    broken = page.evaluate(
        """words => [...document.querySelectorAll("#accuracy tbody th")].flatMap(head => {
            const node = document.createTreeWalker(head, NodeFilter.SHOW_TEXT).nextNode(), text = node.textContent;
            return words.filter(word => {
                const at = text.indexOf(word), range = document.createRange();
                if (at < 0) return false;
                range.setStart(node, at);
                range.setEnd(node, at + word.length);
                return new Set([...range.getClientRects()].map(one => Math.round(one.top))).size > 1;
            });
        })""",
        list(WIDE_WORDS),
    )
    assert broken == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def first_column(page: Any, table: str) -> list[str]:
    return page.eval_on_selector_all(f"{table} tbody tr", "rows => rows.map(row => row.cells[0].textContent)")


def test_tables_sort_by_click_and_by_keyboard(pages: dict[str, Path], open_page: Callable[..., Any]) -> None:
    page = open_page(pages["grid"])
    table = "#accuracy table:first-of-type"
    page.eval_on_selector(table, "table => table.id = 'sorted'")
    before = first_column(page, "#sorted")
    head = page.locator("#sorted thead th").first
    assert head.get_attribute("aria-sort") == "none"
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert first_column(page, "#sorted") == sorted(before)
    page.keyboard.press("Enter")  # the button has the focus
    assert head.get_attribute("aria-sort") == "descending"
    assert first_column(page, "#sorted") == sorted(before, reverse=True)
    numbers = page.locator("#sorted thead th").nth(2)
    numbers.locator("button").focus()
    page.keyboard.press("Space")
    assert (head.get_attribute("aria-sort"), numbers.get_attribute("aria-sort")) == ("none", "ascending")
    values = page.eval_on_selector_all("#sorted tbody tr", "rows => rows.map(row => Number(row.cells[2].dataset.v))")
    assert values == sorted(values) and len(values) == 5


def test_trees_open_and_close(pages: dict[str, Path], open_page: Callable[..., Any]) -> None:
    page = open_page(pages["grid"])
    page.evaluate("document.querySelectorAll('#trees details.folded').forEach(one => one.open = true)")
    tree = page.locator("details.tree").last
    leaf = tree.locator(".spans").first
    assert not leaf.is_visible()
    summary = tree.locator("summary").first
    summary.focus()
    page.keyboard.press("Enter")
    assert leaf.is_visible()
    inner = page.locator("details.tree:has(.spans ul)").first
    inner.evaluate("one => one.open = true")
    inner.get_by_role("button", name="close all").click()
    assert inner.locator(".spans details[open]").count() == 0
    inner.get_by_role("button", name="open all").click()
    assert inner.locator(".spans details:not([open])").count() == 0


def test_the_first_key_leads_to_the_content(pages: dict[str, Path], open_page: Callable[..., Any]) -> None:
    page = open_page(pages["row"])
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"


def test_it_is_printed_light(pages: dict[str, Path], open_page: Callable[..., Any]) -> None:
    page = open_page(pages["row"], scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf()[:5] == b"%PDF-"


def test_hostile_text_does_nothing(lab: Lab, report: Callable[..., str], open_page: Callable[..., Any]) -> None:
    lab.text = NASTY
    for sampler in ("tps", "mcts"):
        for objective in ("dpo", "rft"):
            lab.row(sampler=sampler, objective=objective, accuracy=0.75)
    report("made")
    page = open_page(lab.root / "page.html", 320)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    assert page.locator("img").count() == 0 and page.locator("script").count() == 1
    assert "onerror=alert(2)" in page.inner_text("#pairs")
