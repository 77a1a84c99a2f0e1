"""A rater's page in a real browser: rated by mouse and keys, kept over reloads and tabs, and handed in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deescal.evaluate.humans.config import PackConfig
from deescal.evaluate.humans.export import export_pack
from deescal.evaluate.humans.pack import Pack, make_pack
from deescal.evaluate.humans.ratings import import_ratings
from tests.browser import opened
from tests.evaluate.test_humans import EVIL, make_turns, read_rows

pytestmark = pytest.mark.browser


def exported(folder: Path, form: str) -> Pack:
    pack = make_pack(make_turns(turns=6), PackConfig(form=form, n_items=8, raters=("ann", "bob"), shown_messages=3))
    export_pack(pack, str(folder))
    return pack


def told(pack: Pack, place: int) -> str | None:
    """The answer that the item at this place of ann's sheet asks for, if it is an attention check."""
    return pack.key[pack.sheets["ann"][place]].answer


def rated(page: Any) -> str:
    return page.locator("#count").inner_text()


def download(page: Any, folder: Path) -> str:
    with page.expect_download() as info:
        page.locator("#download").click()
    assert info.value.suggested_filename == "rated-ann.csv"
    info.value.save_as(folder / "rated-ann.csv")
    return str(folder / "rated-ann.csv")


def untroubled(trouble: list[str], requests: list[str]) -> bool:
    return not trouble and all(url.startswith(("file:", "data:", "blob:")) for url in requests)


def test_likert_by_mouse_and_keys_with_a_reload_and_a_second_tab(tmp_path):
    pack = exported(tmp_path, "likert")
    n = len(pack.sheets["ann"])
    with opened(tmp_path / "rate-ann.html") as (page, trouble, requests):
        assert page.locator("#how").get_attribute("open") is not None
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert rated(page) == f"0 of {n} rated"
        with page.expect_popup() as popup:
            page.evaluate("open(location.href)")
        other = popup.value
        for place in range(n // 2):
            realism, helpfulness = (told(pack, place) or choice for choice in ("4", "2"))
            page.locator(f"input[name=realism][value='{realism}'] + kbd").click()
            page.locator(f"input[name=helpfulness][value='{helpfulness}'] + kbd").click()
            page.locator("#next").click()
        other.locator(f"#count:has-text('{n // 2} of {n}')").wait_for()  # by itself, without a reload
        other.keyboard.press("u")
        other.keyboard.press(told(pack, n // 2) or "4")  # one question in the other tab, one in this
        page.reload()
        assert rated(page) == f"{n // 2} of {n} rated"
        assert page.locator("#place").inner_text() == f"Item {n // 2 + 1} of {n}"
        assert page.locator("#how").get_attribute("open") is None
        assert page.locator("input:checked").count() == 1
        for place in range(n // 2, n):
            answer = told(pack, place)
            for key in [answer or "2"] if place == n // 2 else [answer or "4", answer or "2"]:
                page.keyboard.press(key)
            page.keyboard.press("Enter")
        assert rated(page) == f"{n} of {n} rated"
        assert page.locator("#hand-in.done").is_visible()
        page.keyboard.press("p")
        assert page.locator("input:checked").count() == 2
        file = download(page, tmp_path)
    _, result = import_ratings(str(tmp_path), [file])
    assert {e["mean"] for e in result["means"]["realism"].values()} == {4.0}
    assert {e["mean"] for e in result["means"]["helpfulness"].values()} == {2.0}
    assert result["raters"]["ann"]["checks_passed"] == result["raters"]["ann"]["checks"] == 1
    assert result["raters"]["ann"]["rated"] == 8
    assert untroubled(trouble, requests)


def test_pairwise_by_keys_and_half_handed_in(tmp_path):
    pack = exported(tmp_path, "pairwise")
    with opened(tmp_path / "rate-ann.html") as (page, trouble, requests):
        for key in "abt":
            page.keyboard.press(key)
            page.keyboard.press("n")
        page.keyboard.press("p")
        assert page.locator("input:checked").get_attribute("value") == "tie"
        page.keyboard.press("b")
        page.keyboard.press("Tab")
        page.keyboard.press("Control+a")  # the browser's own keys stay its own
        assert page.locator("input:checked").get_attribute("value") == "B"
        rows = read_rows(Path(download(page, tmp_path)))
    assert [row["more_real"] for row in rows] == ["A", "B", "B"] + [""] * (len(pack.sheets["ann"]) - 3)
    _, result = import_ratings(str(tmp_path), [str(tmp_path / "rated-ann.csv")])
    ann = result["raters"]["ann"]
    assert ann["rated"] + ann["checks_due"] == 3
    assert untroubled(trouble, requests)


def test_words_of_others_stay_text_and_earlier_lines_unfold(tmp_path):
    turns = make_turns(4, 3)
    column = turns.schema.get_field_index("reply")
    turns = turns.set_column(column, turns.schema.field(column), [[EVIL] * len(turns)])
    pack = make_pack(turns, PackConfig(n_items=8, raters=("ann", "bob"), shown_messages=1, include_reference=False))
    export_pack(pack, str(tmp_path))
    with opened(tmp_path / "rate-ann.html") as (page, trouble, requests):
        for blinded in pack.sheets["ann"]:
            shown = pack.shown[blinded]
            assert page.locator(".reply p").inner_text() == shown.replies[0]
            assert page.locator("#talk li").count() == 1
            if len(shown.messages) > 1:
                page.locator("#earlier summary").click()
            said = page.locator(".talk li:visible span").all_inner_texts()
            assert said == [text for _, text in shown.messages]
            page.keyboard.press("n")
        page.set_viewport_size({"width": 1200, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 1200
    assert untroubled(trouble, requests)


def test_a_browser_that_keeps_nothing_says_so(tmp_path):
    pack = exported(tmp_path, "likert")
    with opened(tmp_path / "rate-ann.html") as (page, trouble, _):
        assert not page.locator("#not-kept").is_visible()
        page.context.add_init_script("Object.defineProperty(window, 'localStorage', { get() { throw new Error(); } })")
        page.reload()
        assert page.locator("#not-kept").is_visible()
        page.keyboard.press("3")
        page.keyboard.press("3")
        assert rated(page) == f"1 of {len(pack.sheets['ann'])} rated"
        assert read_rows(Path(download(page, tmp_path)))[0]["helpfulness"] == "3"
    assert trouble == []
