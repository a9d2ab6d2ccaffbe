"""The page in a real browser, driven by its keyboard: what a person labels is kept, whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from hpctool.review.queue import Queue
from tests.browser import NEEDS_BROWSER, browser
from tests.review.conftest import TOKEN, serve_page, true_label

__all__ = ["browser"]

pytestmark = [pytest.mark.slow, NEEDS_BROWSER]


class Person:
    """Somebody in front of the page."""

    def __init__(self, browser: Chrome, url: str, name: str = "") -> None:
        self.browser = browser
        browser.get(f"{url}/?token={TOKEN}")
        if name:
            self.until(lambda: self.shown("who"))
            self.press(name, Keys.ENTER)
            self.until(lambda: not self.shown("who") and self.text("person") == name)

    def press(self, *keys: str) -> None:
        """Type where the focus is, as a person does."""
        for key in keys:
            self.browser.switch_to.active_element.send_keys(key)

    def until(self, condition: Callable[[], object]) -> None:
        WebDriverWait(self.browser, 20, poll_frequency=0.03).until(lambda _: condition())

    def text(self, element: str) -> str:
        return self.browser.find_element(By.ID, element).text

    def shown(self, element: str) -> bool:
        return self.browser.find_element(By.ID, element).is_displayed()

    def place(self) -> int:
        """Which item is shown, counted from 0."""
        return int(self.text("place").split()[1]) - 1

    def chosen(self) -> list[str]:
        """The buttons that are shown as this person's answer."""
        return [b.text.splitlines()[0] for b in self.browser.find_elements(By.CSS_SELECTOR, "[aria-pressed=true]")]

    def saved(self) -> None:
        self.until(lambda: self.text("status") == "✓ all saved")


def labels(queue: Queue, person: str) -> list[int | None]:
    """What is on disk, in order of item; -1 for no answer."""
    answers = Queue(queue.path).answers()
    found = [answers.get(item.prediction, {}).get(person) for item in queue.items]
    return [-1 if answer is None else answer.label for answer in found]


def log_of(browser: Chrome) -> list[dict[str, str]]:
    """What the browser has complained of since it was last asked."""
    found: list[dict[str, str]] = browser.get_log("browser")  # type: ignore[no-untyped-call]
    return found


@pytest.fixture(autouse=True)
def a_new_browser(browser: Chrome) -> Iterator[None]:
    yield
    complaints = [one["message"] for one in log_of(browser) if "ERR_CONNECTION_REFUSED" not in one["message"]]
    browser.execute_script("localStorage.clear()")
    browser.delete_all_cookies()
    browser.get("about:blank")
    assert not complaints


def test_ten_images_by_keyboard_one_undone_and_a_reload_loses_nothing(browser: Chrome, queue: Queue) -> None:
    with serve_page(queue) as page:
        ann = Person(browser, page.url, "ann")
        assert TOKEN not in browser.current_url
        for place in range(10):
            assert ann.place() == place
            ann.press(str(true_label(queue, place)))
        ann.press("u")
        ann.saved()
        assert ann.place() == 9
        assert ann.text("count") == "9 of 12"
        expected = [true_label(queue, place) for place in range(9)] + [-1, -1, -1]
        assert labels(queue, "ann") == expected
        browser.refresh()
        ann.until(lambda: ann.text("count") == "9 of 12")
        assert ann.text("person") == "ann"
        assert ann.place() == 9, "it goes on at the first item without an answer"
        ann.press(Keys.ARROW_LEFT)
        assert (ann.place(), ann.chosen()) == (8, [str(true_label(queue, 8))])
        assert labels(queue, "ann") == expected


def test_skip_browse_correct_and_come_to_the_end(browser: Chrome, queue: Queue) -> None:
    with serve_page(queue) as page:
        ann = Person(browser, page.url, "ann")
        ann.press("s", " ", Keys.ARROW_RIGHT, "5", Keys.ARROW_LEFT, Keys.ARROW_LEFT)
        assert ann.place() == 2
        ann.press(Keys.ARROW_LEFT, "7")
        ann.saved()
        assert labels(queue, "ann")[:5] == [None, 7, -1, 5, -1]
        assert ann.place() == 2, "the next one without an answer"
        ann.press("u")
        assert (ann.place(), ann.chosen()) == (1, ["s"]), "what was said before stands again"
        ann.press(*"2" * 10)
        ann.saved()
        ann.until(lambda: ann.shown("done"))
        assert "11 labelled and 1 skipped by ann" in ann.text("sum")
        assert queue.id in ann.text("command")
        ann.press(Keys.ARROW_LEFT)
        assert (ann.place(), ann.shown("done")) == (11, False)


def test_a_server_that_is_gone_is_said_and_what_was_answered_meanwhile_is_saved_later(
    browser: Chrome, queue: Queue
) -> None:
    with serve_page(queue) as page:
        ann = Person(browser, page.url, "ann")
        ann.press("1")
        ann.saved()
    ann.press("2", "3")
    ann.until(lambda: "The server cannot be reached" in ann.text("problem"))
    ann.until(lambda: "2 not saved" in ann.text("status"))
    assert labels(queue, "ann")[:3] == [1, -1, -1]
    with serve_page(queue, page.port):
        ann.saved()
        assert not ann.shown("problem")
        assert labels(queue, "ann")[:3] == [1, 2, 3]


def test_what_was_not_saved_survives_the_page(browser: Chrome, queue: Queue) -> None:
    with serve_page(queue) as page:
        ann = Person(browser, page.url, "ann")
    ann.press("4", "6")
    ann.until(lambda: "not saved" in ann.text("status"))
    # The tab is gone: what it held in memory is lost, what it kept is not.
    browser.get("about:blank")
    with serve_page(queue, page.port):
        ann = Person(browser, page.url)
        ann.saved()
        assert ann.text("count") == "2 of 12"
        assert labels(queue, "ann")[:3] == [4, 6, -1]


def test_two_people_share_a_queue_and_do_not_see_each_other(browser: Chrome, queue: Queue) -> None:
    with serve_page(queue) as page:
        ann = Person(browser, page.url, "ann")
        ann.press("1", "1")
        ann.saved()
        browser.find_element(By.ID, "person").click()
        ann.press("bob", Keys.ENTER)
        ann.until(lambda: ann.text("person") == "bob")
        assert (ann.text("count"), ann.place(), ann.chosen()) == ("0 of 12", 0, [])
        ann.press("2")
        ann.saved()
    assert (labels(queue, "ann")[:3], labels(queue, "bob")[:3]) == ([1, 1, -1], [2, -1, -1])


def test_the_mouse_and_the_tab_key_work_as_well(browser: Chrome, queue: Queue) -> None:
    with serve_page(queue) as page:
        ann = Person(browser, page.url, "ann")
        browser.find_element(By.CSS_SELECTOR, "[data-label='3']").click()
        browser.find_element(By.ID, "skip").click()
        ann.press(Keys.TAB, Keys.TAB, " ")
        ann.saved()
        assert labels(queue, "ann")[:4] == [3, None, 1, -1]
        ann.press("?")
        ann.until(lambda: ann.shown("help"))
        ann.press("5", Keys.ESCAPE)
        assert not ann.shown("help")
        assert labels(queue, "ann")[3] == -1, "keys mean nothing while the help is open"


def test_small_images_are_enlarged_by_whole_pixels(browser: Chrome, queue: Queue) -> None:
    with serve_page(queue) as page:
        ann = Person(browser, page.url, "ann")
        image = browser.find_element(By.ID, "image")
        ann.until(lambda: image.size["width"] > 100)
        frame = browser.find_element(By.CSS_SELECTOR, ".frame").size
        assert image.size["width"] == image.size["height"]
        assert image.size["width"] % 8 == 0
        assert frame["width"] - 10 <= image.size["width"] <= frame["width"]
        assert image.value_of_css_property("image-rendering") == "pixelated"
        assert image.get_attribute("alt") == "Item 1, to be labelled"


def test_without_the_token_the_browser_shows_how_to_get_in(browser: Chrome, queue: Queue) -> None:
    with serve_page(queue) as page:
        browser.get(page.url)
        assert "hpctool review serve" in browser.find_element(By.TAG_NAME, "body").text
    log_of(browser)  # it complains of the 401
