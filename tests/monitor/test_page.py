"""The report: one file that any browser shows without a network, whatever the names in it are."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpctool.monitor import page, words
from hpctool.monitor.drift import compare
from hpctool.monitor.schema import Monitor
from hpctool.monitor.window import Window
from tests.monitor.conftest import Digits, Images, Rows, make_reference

HOSTILE = "<script>alert(1)</script>\"' onload=x & http://example.org/"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def render(
    reference: dict[str, Any], rows: Rows, classes: list[str], source: str = "scanner", num_lost: int = 0
) -> tuple[str, list[str]]:
    """The page, and the sentences on it."""
    times = 1.7e9 + np.arange(len(rows.probabilities), dtype=np.float64)
    window = Window(rows.input, rows.probabilities, times, {source: len(times)}, 3, num_lost)
    look = page.Look(
        Monitor("digits@0003", source, None, None, None, 3, 0.01, 0.1, 100, False),
        window,
        classes,
        "monitor-0123abcd",
        "2026-01-31T14:00:00.000Z",
    )
    report = compare(reference, rows)
    said = words.sentences(report, classes, num_lost)
    return page.render(report, look, said), said


def digit_names() -> list[str]:
    return [str(k) for k in range(10)]


def worn(images: Images) -> Images:
    return images // 2


@pytest.mark.slow
def test_it_says_what_was_found_and_what_to_do(digits: Digits) -> None:
    reference, images = digits.split(0, 300)
    html, said = render(reference, digits.rows(worn(images)), digit_names(), num_lost=1234)
    assert said[0].startswith("ALARM: ")
    assert all(part in html for part in ("ALARM: ", "1,234 predictions of this journal", "monitor-0123abcd"))
    assert "hpctool review queue digits@0003 --source scanner" in html
    assert "2023-11-14 22:13:20 UTC" in html
    calm, said = render(reference, digits.rows(images), digit_names())
    assert said[0].startswith("No alarm: ")
    assert "Nothing has to be done." in calm
    few, said = render(reference, digits.rows(images[:20]), digit_names())
    assert said[0].startswith("Too few rows to tell: ")
    assert "Ask again when there are more rows" in few


def test_statistics_are_sorted_by_effect(digits: Digits) -> None:
    reference, images = digits.split(0, 300)
    html, _ = render(reference, digits.rows(worn(images)), digit_names())
    effects = [float(cell) for cell in re.findall(r'<td class="number">(\d+\.\d{3})</td>\s*<td class="meter">', html)]
    assert len(effects) == 23
    assert effects == sorted(effects, reverse=True)


def test_hostile_names_are_only_text_and_nothing_is_loaded(digits: Digits) -> None:
    reference, images = digits.split(0, 300)
    chosen = images[digits.rows(images).probabilities.argmax(axis=1) < 3]
    html, _ = render(reference, digits.rows(chosen), [HOSTILE] * 10, source=HOSTILE)
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)" in html
    without_text = html.replace("http://example.org/", "")
    assert not re.search(r"http|//|@import|url\(|src=", without_text)


@pytest.mark.slow
def test_a_thousand_classes_and_many_features_stay_below_a_megabyte() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 60)).astype(np.float32)
    logits = rng.normal(size=(400, 1000)).astype(np.float32)
    reference = make_reference(x, logits, logits.argmax(axis=1))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    html, _ = render(
        reference, Rows(x + 1, shares.astype(np.float32)), [f"class {k} " + "x" * 200 for k in range(1000)]
    )
    assert len(html.encode()) < 300_000
    assert "Of 1000 classes the 24 whose share has changed most are drawn." in html


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_a_browser_without_a_network_shows_it_without_complaint(tmp_path: Path, digits: Digits) -> None:
    reference, images = digits.split(0, 300)
    html, said = render(reference, digits.rows(worn(images)), digit_names())
    (tmp_path / "report.html").write_text(html)
    assert CHROMIUM is not None
    flags = ("headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking")
    offline = ("host-resolver-rules=MAP * ~NOTFOUND", "disable-component-update", "disable-sync")
    logs = ("enable-logging=stderr", f"user-data-dir={tmp_path / 'profile'}", "dump-dom")
    command = [CHROMIUM, *(f"--{flag}" for flag in (*flags, *offline, *logs)), (tmp_path / "report.html").as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert shown.returncode == 0, shown.stderr
    assert "CONSOLE" not in shown.stderr
    assert said[0].replace("<", "&lt;") in shown.stdout
    assert shown.stdout.count("</svg>") == html.count("</svg>") == 8
