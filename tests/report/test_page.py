"""The page in a real browser: it opens from disk without errors, its controls work, and texts stay texts."""

import re
import shutil

import numpy as np
import pytest

from idp.report.__main__ import main
from tests.report.conftest import HOSTILE

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the dev packages")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a chromium on the PATH, such as Debian's package")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser, sweep, tmp_path, capsys):
    """The page of the sweep, ready; whatever the browser complains of fails the test."""
    main([str(sweep), f"output={tmp_path / 'report'}", "formats=page"])
    complaints = []
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.set_default_timeout(120_000)
    opened.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on(
        "request",
        lambda asked: None if asked.url.startswith(("file:", "data:", "blob:")) else complaints.append(asked.url),
    )
    opened.goto((tmp_path / "report" / "index.html").as_uri())
    opened.wait_for_selector("html[data-ready]", state="attached")
    yield opened
    opened.close()
    assert complaints == []


def test_every_view_is_drawn(page):
    assert page.locator("#map .node").count() == 5
    assert page.locator("#scatter [aria-label='dot'] > *").count() == 5
    assert page.locator("#table tbody tr").count() == 5
    assert page.locator("#compare svg").count() >= 1
    assert page.locator("#behaviours details").count() >= 1
    assert page.locator("#layers svg").count() >= 1
    assert page.locator("#told li").count() == 1
    assert page.locator("#headline").inner_text().strip() != ""
    assert page.locator("#prompts tbody tr").count() == 2, "arc_easy and all"
    assert page.locator("#prompts svg").count() >= 1


def test_text_stays_text(page):
    page.locator("#behaviours select").nth(2).select_option("000")
    item = page.locator("#behaviours details").first
    assert HOSTILE in item.locator(".context").text_content()
    assert HOSTILE in item.locator("tbody th").first.text_content()
    assert HOSTILE in page.locator("#told").text_content()
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0


def test_the_table_sorts_and_filters(page):
    def scores():
        place = page.locator("#table thead th").evaluate_all(
            "heads => heads.findIndex(head => head.innerText.startsWith('arc_easy')) + 1"
        )
        cells = page.locator(f"#table tbody tr > :nth-child({place})").all_inner_texts()
        return [float(said.split()[0]) for said in cells]

    assert page.locator("#table button[data-key='arc_easy']").count() == 0, "the main columns alone, at first"
    page.locator("#table summary", has_text="columns").click()
    page.locator("#table fieldset label.tick", has_text=re.compile("^arc_easy$")).locator("input").check()
    button = page.locator("#table button[data-key='arc_easy']")
    button.click()
    assert scores() == sorted(scores(), reverse=True)
    assert page.locator("#table th[aria-sort='descending']").inner_text().startswith("arc_easy")
    page.keyboard.press("Enter")  # the button has kept the focus
    assert scores() == sorted(scores())
    page.locator("#table input[type='search']").fill("rtn3 idp")
    assert page.locator("#table tbody tr").count() == 1
    page.locator("#table input[type='search']").fill("")
    page.locator("#table select").select_option("compressed")
    assert page.locator("#table tbody tr").count() == 2


def test_models_are_chosen_by_keyboard_everywhere(page):
    def chosen():
        return page.locator("#table tr.chosen").count()

    page.locator("#table button", has_text="choose none").click()
    assert chosen() == 0 and "Choose models" in page.locator("#compare").inner_text()
    page.locator("#map .node").nth(1).focus()
    page.keyboard.press("Enter")
    assert chosen() == 1 and page.locator("#map .node[aria-pressed='true']").count() == 1
    page.locator("#scatter [data-id]").nth(3).focus()
    page.keyboard.press("Space")
    assert chosen() == 2
    page.locator("#table tbody input").first.focus()
    page.keyboard.press("Space")
    assert chosen() == 3 and page.locator("#compare [aria-label='dot'] path").count() >= 3


def test_axes_are_the_readers_choice(page):
    for index, label in ((0, "bits"), (1, "sparsity")):
        page.locator("#scatter select").nth(index).select_option(label)
    said = page.locator("#scatter .axis").inner_text()
    assert "bits" in said and "sparsity" in said
    page.locator("#scatter label", has_text="logarithmic across").locator("input").check()
    assert page.locator("#scatter [aria-label='dot'] > *").count() == 5


def test_behaviours_are_those_of_the_outcomes(page, sweep):
    from idp.records.collect import collect
    from idp.records.outcomes import paired

    found = collect([sweep])
    dense, compressed, repaired = found.models[:3]
    right = [scores > 0.5 for scores in paired([dense, compressed, repaired], "arc_easy")]
    for pattern in ("101", "100", "110", "001", "111", "000"):
        wanted = [(row if bit == "1" else ~row) for bit, row in zip(pattern, right, strict=True)]
        count = int((wanted[0] & wanted[1] & wanted[2]).sum())
        page.locator("#behaviours select").nth(2).select_option(pattern)
        assert page.locator("#behaviours .count").inner_text().startswith(f"{count} document")
        assert page.locator("#behaviours details").count() == min(count, 20)
        if count:
            marks = page.locator("#behaviours details").first.locator("thead span").all_inner_texts()
            assert marks == ["✓ right" if bit == "1" else "✗ wrong" for bit in pattern]
            assert "given prompt_" in page.locator("#behaviours details").first.locator("thead").inner_text()


def test_bars_of_equal_shares_are_equally_long_in_all_columns(page):
    page.locator("#behaviours select").nth(2).select_option("111")
    bars = page.locator("#behaviours details").first.locator(".share")
    drawn = bars.evaluate_all(
        "bars => bars.map(bar => [parseInt(bar.innerText), bar.querySelector('i').getBoundingClientRect().width])"
    )
    per_percent = [width / share for share, width in drawn if share]
    assert len(per_percent) > 4 and max(per_percent) / min(per_percent) < 1.05


def test_themes(page):
    def background():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = background()
    for name in ("light", "dark"):
        page.locator("#theme").click()
        assert page.locator("html").get_attribute("data-theme") == name
    assert background() != light
    page.emulate_media(media="print")
    assert background() == "rgb(255, 255, 255)" and not page.locator("nav").is_visible()


def beyond(page):
    """What is drawn to the right of the page's edge, outside of what scrolls by itself."""
    return page.evaluate(
        "[...document.querySelectorAll('body *')].filter(node => node.getBoundingClientRect().right > innerWidth + 1"
        " && !node.closest('.scroll, details > div, .unseen')).map(node => node.outerHTML.slice(0, 80))"
    )


@pytest.mark.parametrize("wide", [360, 390, 768, 1280])
def test_nothing_runs_over_the_edge(page, wide):
    page.set_viewport_size({"width": wide, "height": 844})
    page.wait_for_timeout(400)  # drawn again for the new width
    assert beyond(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= wide
    page.locator("#table summary", has_text="columns").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= wide


def test_on_paper_the_main_columns_are_whole(page):
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 700, "height": 1000})  # A4 less its margins, in CSS pixels
    page.wait_for_timeout(400)
    head = page.locator("#table thead th:visible")
    assert [said.split("(")[0].strip() for said in head.all_inner_texts()][:3] == ["model", "mean", "difference"]
    assert "added parameters" in head.last.inner_text()
    assert head.last.evaluate("head => head.getBoundingClientRect().right") <= 700
    assert beyond(page) == []


def test_the_first_column_stays_in_sight(page):
    page.set_viewport_size({"width": 390, "height": 844})
    where = "() => document.querySelector('#table tbody th.name').getBoundingClientRect().x"
    before = page.evaluate(where)  # in one go: what is resized is drawn anew
    page.locator("#table .scroll").evaluate("box => box.scrollLeft = 300")
    assert page.evaluate(where) == pytest.approx(before, abs=40)


def test_a_link_shows_what_was_chosen(page, browser):
    page.locator("#table button", has_text="choose none").click()
    page.locator("#table tbody input").nth(1).check()
    page.locator("#table summary", has_text="columns").click()
    page.locator("#table fieldset label.tick", has_text="bits").first.locator("input").check()
    page.locator("#table button[data-key='bits']").click()
    page.locator("#scatter select").nth(0).select_option("bits")
    page.locator("#compare label.tick", has_text="difference to").locator("input").uncheck()
    again = browser.new_page(viewport={"width": 1280, "height": 900})
    again.goto(page.url)
    again.wait_for_selector("html[data-ready]", state="attached", timeout=120_000)
    said = "[[...state.chosen], [...filter.columns], sorting, axes, comparing.difference]"
    assert again.evaluate(said) == page.evaluate(said)
    assert again.url == page.url and "bits" in again.url
    again.close()
    hostile = browser.new_page()
    hostile.goto(page.url.partition("#")[0] + "#nowhere?chosen=x&columns=%3Cscript%3E&sort=a:b&axes=1%7C2&runs=99")
    hostile.wait_for_selector("html[data-ready]", state="attached", timeout=120_000)
    assert hostile.locator("#table tbody tr").count() == 5
    hostile.close()


def test_what_is_shown_is_taken_away(page):
    import csv

    with page.expect_download() as taken:
        page.locator("#table button", has_text="CSV").click()
    with open(taken.value.path(), newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 and float(rows[1]["bits, number"]) > 0
    for section in ("map", "scatter", "compare", "prompts", "layers"):
        with page.expect_download() as taken:
            page.locator(f"#{section} button", has_text="SVG").click()
        text = taken.value.path().read_text()
        assert taken.value.suggested_filename == f"{section}.svg"
        assert text.startswith("<svg") and 'xmlns="http://www.w3.org/2000/svg"' in text
        titles = page.locator(f"#{section} .axis").all_inner_texts()
        assert all(line in text for title in titles for line in title.splitlines()), "what the axes show goes along"


def test_counts_of_all_behaviours_stand_side_by_side(page):
    counts = page.locator("#behaviours .counts button")
    assert counts.count() == 8
    assert sum(int(said.split()[0]) for said in counts.all_inner_texts()) == 8, "each document once"
    counts.last.click()
    assert page.locator("#behaviours .counts button[aria-pressed='true']").count() == 1
    assert page.locator("#behaviours select").nth(2).input_value() == "000"


def shown(browser, runs, tmp_path):
    """The page of a folder of runs, ready, and what the browser complains of."""
    main([str(runs), f"output={tmp_path / 'report'}", "formats=page"])
    opened, complaints = browser.new_page(viewport={"width": 1280, "height": 900}), []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto((tmp_path / "report" / "index.html").as_uri())
    opened.wait_for_selector("html[data-ready]", state="attached", timeout=120_000)
    return opened, complaints


@pytest.fixture
def study(record):
    """Two compressed models of 200 documents a task, a repair with three seeds, a selector that peeks; no real run."""
    from tests.report.test_intervals import ORACLE, PROMPT, outcomes_of

    def uses_labels(written):
        written["idp"]["selector"] = {"kind": "mine", "peeks": True}

    for compressor, seed in (("gptq3", 7), ("gptq4", 8)):
        right = outcomes_of(seed=seed)

        def outcomes(model, task, number, right=right, compressor=compressor):
            scores = right(model, task)
            if model == "repaired":
                scores = np.roll(scores, 3 * number)  # other documents with other seeds
            return scores if model != "dense" else outcomes_of(seed=1)(model, task)

        for number in range(3 if compressor == "gptq3" else 1):
            record(
                f"{compressor}-{number}",
                seed=number,
                compressor=compressor,
                recovery=PROMPT,
                right=lambda model, task, number=number, outcomes=outcomes: outcomes(model, task, number),
            )
    record(
        "oracle",
        compressor="gptq4",
        recovery=ORACLE,
        change=uses_labels,
        right=lambda model, task: outcomes(model, task, 0),
    )


def test_differences_are_paired_whatever_the_reference(browser, study, runs, tmp_path, capsys):
    """Stored for dense and the compressed model, computed in the page for any other: the analysis' own intervals."""
    from idp.records.collect import collect
    from idp.report.comparisons import against
    from idp.report.view import views

    (view,) = views(collect([runs]))
    opened, complaints = shown(browser, runs, tmp_path)
    rows = [row for row in view.rows if not row.first.uses_labels]
    seen = set()
    for before in rows:
        for after in rows:
            if before is after:
                continue
            wanted = against(before, after, view.tasks, {})
            for key in (*view.tasks, "mean"):
                found = opened.evaluate(
                    "([a, b, key]) => differenceOf(rowOf(a), rowOf(b), key)", [after.id, before.id, key]
                )
                said = [found[name] for name in ("difference", "low", "high", "p")]
                right = [getattr(wanted.of(key), name) for name in ("difference", "low", "high", "p")]
                assert said == pytest.approx(right, rel=1e-4, abs=1e-6), (before.name, after.name, key)
                seen.add((before.runs, after.runs))
    assert seen == {(1, 1), (1, 3), (3, 1)} and complaints == []
    opened.close()


def test_bars_of_differences_are_paired_and_the_reference_has_none(browser, study, runs, tmp_path, capsys):
    opened, complaints = shown(browser, runs, tmp_path)

    def bars():
        return opened.evaluate(
            "[...document.querySelectorAll('#compare line[aria-label=interval]')].map(bar => {"
            " const box = bar.getBoundingClientRect(); return [box.width, bar.getAttribute('stroke')]; })"
        )

    models = opened.locator("#table tr.chosen").count()
    assert len(bars()) == 3 * (models - 1), "two tasks and their mean"
    opened.locator("#compare label.tick", has_text="difference to").locator("input").uncheck()
    assert len(bars()) == 3 * models
    opened.locator("#compare label.tick", has_text="difference to").locator("input").check()
    notes = opened.locator("#compare .notes").inner_text()
    assert "interval holds for this seed only" in notes and "gptq4 + prompt" in notes
    assert "95 % CI, paired over documents" in opened.locator("#compare .view").inner_text()
    assert complaints == []
    opened.close()


def test_without_outcomes_a_difference_has_no_bar_and_says_why(browser, study, runs, tmp_path, capsys):
    (runs / "gptq4-0" / "samples.parquet").unlink()
    opened, complaints = shown(browser, runs, tmp_path)
    names = {row: opened.evaluate("name => DATA.views[0].rows.find(row => row.name === name).id", row)
             for row in ("gptq3 + prompt", "gptq4 + prompt")}  # fmt: skip
    found = opened.evaluate("([a, b]) => differenceOf(rowOf(a), rowOf(b), 'mean')", list(names.values()))
    assert list(found) == ["why"] and "samples.parquet" in found["why"]
    opened.evaluate("([a, b]) => { state.chosen = new Set([a, b]); comparing.difference = true; choose(b, true); }",
                    list(names.values()))  # fmt: skip
    assert opened.locator("#compare line[aria-label=interval]").count() == 0
    assert (
        "No interval of gptq4 + prompt: outcomes of single documents are missing"
        in opened.locator("#compare .notes").inner_text()
    )
    assert complaints == []
    opened.close()


def test_colours_of_the_map_start_at_the_reference_and_noise_stays_pale(browser, record, runs, tmp_path, capsys):
    from tests.report.test_intervals import PROMPT, outcomes_of

    right = outcomes_of(broken=0.0, mended=0.0)

    def nearly(model, task):
        scores = right(model, task).copy()
        if model == "repaired":
            scores[:20] = 1 - scores[:20]  # as many turn right as wrong, but for chance
        return scores

    record("prompt", recovery=PROMPT, right=nearly)
    opened, complaints = shown(browser, runs, tmp_path)
    found = opened.evaluate(
        "() => { const reference = rowOf(mapping.reference); const { differences, reach } = coloured(state.view.rows,"
        " reference); const found = [...differences.values()].map(each => [each.difference, each.noise]);"
        " return [reference.role, reach, found]; }"
    )
    role, reach, differences = found
    repaired = differences[2]
    interval = opened.evaluate("() => state.view.rows[2].against[mapping.reference].mean")
    error = (interval[2] - interval[1]) / 3.92
    assert role == "compressed" and reach >= 2 * error > 0 and reach > abs(repaired[0])
    assert differences[1] == [0, False] and repaired[1] is True
    assert opened.locator("#map circle.noise").count() >= 1
    assert "above or below gptq3" in opened.locator("#map .view").inner_text()
    assert complaints == []
    opened.close()
