"""The report of many runs: its numbers, its size, and the page as a person uses it in a real browser."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

from hpctool.track.report import Asked, build, importance, render, thinned
from hpctool.track.row import Row
from hpctool.track.runs import list_rows
from tests.browser import NEEDS_BROWSER, browser
from tests.track.samples import Sample

__all__ = ["browser"]

HOSTILE = "</script><script>alert(1)</script><!-- \u2028 \"' onload=x"


def some(runs: Path, number: int = 12) -> list[Row]:
    """Runs over learning rate and model, of which every fifth failed."""
    for index in range(number):
        model = "cnn" if index % 2 else "mlp"
        told: dict[str, Any] = {
            "overrides": [f"model={model}", f"optim.lr={0.1 / (index + 1)}"],
            "choices": {"model": model},
        }
        sample = Sample(runs, f"{index:08x}", lr=0.1 / (index + 1), varied=["optim.lr", "model"], **told).begin()
        sample.log(range(0, 300, 3), accuracy=0.5 + index / 100)
        if index % 5 == 4:
            sample.end("failed", f"loss is nan at step {index * 10}", 9)
        else:
            sample.complete()
    return list_rows(runs)


@pytest.mark.slow
def test_a_report_says_which_run_is_best_what_it_cost_and_what_failed(tmp_path: Path) -> None:
    data = build(some(tmp_path), Asked("Lamps", "hpctool runs report"))
    assert (data["metric"], data["more_is_better"]) == ("val/accuracy", True)
    assert set(data["settings"]) == {"optim.lr", "model"}
    assert [(one["state"], one["count"]) for one in data["causes"]] == [("failed", 2)]
    run = data["runs"][0]
    assert run["settings"] == {"optim.lr": 0.1 / 12, "model": "cnn"}
    assert run["metrics"]["val/accuracy"] == pytest.approx(0.61)
    assert len(run["curves"]["train/loss"][0]) <= 120
    json.dumps(data, allow_nan=False)


def test_the_setting_that_matters_is_named_and_one_that_does_not_is_small() -> None:
    rng = random.Random(0)
    runs = [
        {
            "settings": {"lr": lr, "seed": rng.randrange(3)},
            "metrics": {"acc": -abs(math.log10(lr) + 3) + rng.gauss(0, 0.1)},
        }
        for lr in (10 ** rng.uniform(-5, -1) for _ in range(120))
    ]
    found = {one["key"]: one["share"] for one in importance(runs, ["lr", "seed"], "acc")}
    assert found["lr"] > 0.7
    assert found["seed"] < 0.1
    assert importance(runs[:3], ["lr", "seed"], "acc") == []


def test_a_thinned_curve_keeps_its_ends_and_its_spikes() -> None:
    points = [(step, 0.0) for step in range(10_000)]
    points[5_001] = (5_001, 9.0)
    kept = thinned(points, 40)
    assert len(kept) <= 40
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert points[5_001] in kept
    assert [step for step, _ in kept] == sorted(step for step, _ in kept)


def test_names_and_causes_are_only_text_and_nothing_is_loaded(tmp_path: Path) -> None:
    sample = Sample(tmp_path, "aa", overrides=[f"note={HOSTILE}"], varied=["note"]).begin()
    sample.end("failed", HOSTILE, 1)
    page = render(build(list_rows(tmp_path), Asked(HOSTILE, HOSTILE)))
    assert "<script>alert" not in page
    assert page.count("</script>") == 2
    assert not re.search(r'(src|href)="(?!data:)|@import|url\(', page)
    assert re.findall(r"https?://[^\s\"']+", page) == ["http://www.w3.org/2000/svg"]


@pytest.mark.slow
def test_a_page_of_a_thousand_runs_stays_below_three_megabytes(tmp_path: Path) -> None:
    row = some(tmp_path, 1)[0]
    page = render(build([row] * 1000, Asked("Many", "hpctool runs report")))
    assert len(page.encode()) < 3_000_000


class Page:
    """The page of a dozen runs in a browser."""

    def __init__(self, browser: Chrome, path: Path, rows: list[Row], **asked: Any) -> None:
        path.write_text(render(build(rows, Asked("Lamps", "hpctool runs report", **asked))))
        self.browser = browser
        browser.get(path.as_uri())

    def ids(self) -> list[str]:
        return [cell.text for cell in self.browser.find_elements(By.CSS_SELECTOR, "#runs tr.run td.id")]

    def click_heading(self, name: str) -> None:
        headings = self.browser.find_elements(By.CSS_SELECTOR, "#runs thead th")
        next(one for one in headings if one.text.split(" ")[0] == name).click()


@pytest.mark.slow
@NEEDS_BROWSER
def test_a_person_sorts_filters_brushes_and_looks_up_a_run(tmp_path: Path, browser: Chrome) -> None:
    rows = some(tmp_path / "runs")
    section = {
        "title": "Rungs",
        "sentences": ["Three went on."],
        "columns": ["rung", "runs"],
        "rows": [[1, 12], [3, 3]],
    }
    page = Page(browser, tmp_path / "report.html", rows, sections=[section])
    assert len(page.ids()) == 12
    assert page.ids()[0] == "train-0000000b"
    page.click_heading("val/accuracy")
    assert page.ids()[0] == "train-00000000"
    page.click_heading("id")
    assert page.ids() == sorted(page.ids())
    # Words choose rows; the threads of the others fade.
    box = browser.find_element(By.ID, "filter")
    box.send_keys("failed")
    assert page.ids() == ["train-00000004", "train-00000009"]
    assert len(browser.find_elements(By.CSS_SELECTOR, "#parallel .line.out")) == 10
    box.clear()
    box.send_keys(" ")
    # A brush over the upper half of the metric's axis leaves the better half.
    area = browser.find_element(By.CSS_SELECTOR, "[data-key='val/accuracy']")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", area)
    height = area.size["height"]
    drag = ActionChains(browser).move_to_element_with_offset(area, 0, -round(height / 2) + 1)
    drag.click_and_hold().move_by_offset(0, round(height / 2)).release().perform()
    assert 4 <= len(page.ids()) <= 7
    assert "train-0000000b" in page.ids()
    assert browser.find_element(By.ID, "count").text == f"{len(page.ids())} of 12"
    area.click()
    assert len(page.ids()) == 12
    line = browser.find_element(By.CSS_SELECTOR, "#runs tr.run")
    line.click()
    assert "hpctool runs lineage train-00000000" in browser.find_element(By.CSS_SELECTOR, "tr.detail").text
    assert "Three went on." in browser.find_element(By.ID, "sections").text
    assert browser.get_log("browser") == []  # type: ignore[no-untyped-call]


@pytest.mark.slow
@NEEDS_BROWSER
def test_one_run_without_any_number_is_a_page_too(tmp_path: Path, browser: Chrome) -> None:
    Sample(tmp_path / "runs", "aa").submit("7")
    page = Page(browser, tmp_path / "report.html", list_rows(tmp_path / "runs"))
    assert page.ids() == ["train-aaaaaaaa"]
    assert browser.get_log("browser") == []  # type: ignore[no-untyped-call]
