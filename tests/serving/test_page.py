"""The page at `/`, driven by a real browser: what people click, what they then see, and that nothing goes elsewhere.

Needs Debian's packages chromium and chromium-driver, which `make test-slow` installs.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait
from transformers import PreTrainedTokenizerBase

import anyorder
from anyorder.model.llama import Llama
from anyorder.serving.app import PAGE, Server
from tests.serving.conftest import serving

SECONDS = 60


def test_the_page_is_one_file_that_asks_nobody_else(served: tuple[str, Server]) -> None:
    answer = httpx.get(served[0])
    assert answer.headers["content-type"].startswith("text/html")
    assert "connect-src 'self'" in answer.headers["content-security-policy"]
    text = PAGE.read_text(encoding="utf-8")
    assert answer.text == text
    assert not re.search(r"https?://|//cdn|@import|src=", text)


class Page:
    """The page in a browser.

    Args:
        driver: of the browser.
        address: of the server.
    """

    def __init__(self, driver: webdriver.Chrome, address: str) -> None:
        self.driver = driver
        driver.get(address)
        self.until(lambda: "tokens, writes" in self["about"].text)

    def __getitem__(self, name: str) -> WebElement:
        return self.driver.find_element(By.ID, name)

    def until(self, holds: Any) -> None:
        WebDriverWait(self.driver, SECONDS, poll_frequency=0.05).until(lambda _: holds())

    def click(self, name: str) -> None:
        self[name].click()

    def fill(self, name: str, text: object) -> None:
        self[name].clear()
        self[name].send_keys(str(text))

    def press(self, name: str) -> None:
        """Click a button, and wait until its task has ended."""
        self.click(name)
        self.until(lambda: self[name].get_attribute("disabled") is None)

    def is_answered(self) -> bool:
        return self["again"].get_attribute("disabled") is None


@pytest.fixture(scope="module")
def driver() -> Iterator[webdriver.Chrome]:
    browser, service = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or service is None:
        pytest.skip("needs Debian's packages chromium and chromium-driver: run make test-slow")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1100,800"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(service))
    yield driver
    driver.quit()


@pytest.fixture
def page(driver: webdriver.Chrome, served: tuple[str, Server]) -> Iterator[Page]:
    driver.get_log("performance")
    yield Page(driver, served[0])
    errors = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert not errors
    events = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    asked = {
        event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
    }  # fmt: skip
    assert asked
    assert all(url.startswith((served[0], "data:")) for url in asked)


@pytest.mark.slow
def test_chat(page: Page, network: tuple[Llama, PreTrainedTokenizerBase]) -> None:
    page.click("settings")
    page.fill("max_tokens", 12)
    page["message"].send_keys("hello", Keys.ENTER)
    page.until(page.is_answered)
    messages = [{"role": "user", "content": "hello"}]
    first = str(anyorder.generate(*network, messages, max_new_tokens=12).text)
    turns = page.driver.find_elements(By.CLASS_NAME, "turn")
    assert [turn.get_attribute("textContent") for turn in turns] == ["hello", first]
    assert re.fullmatch(r"\d+ tokens in \d+ passes, [\d.]+ s, [\d.]+ tokens/s", page["chat-note"].text)
    page["message"].send_keys("again", Keys.ENTER)
    page.until(page.is_answered)
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "again"}]
    second = str(anyorder.generate(*network, messages, max_new_tokens=12).text)
    turns = page.driver.find_elements(By.CLASS_NAME, "turn")
    assert [turn.get_attribute("textContent") for turn in turns][2:] == ["again", second]
    page.click("again")
    page.until(page.is_answered)
    assert len(page.driver.find_elements(By.CLASS_NAME, "turn")) == 4
    page.click("clear")
    assert not page.driver.find_elements(By.CLASS_NAME, "turn")


@pytest.mark.slow
def test_stop_stops(driver: webdriver.Chrome, network: tuple[Llama, PreTrainedTokenizerBase]) -> None:
    """The answer stays as far as it was written, and the server writes no more of it."""
    model, tokenizer = network
    endless = Llama(model.config.replace(eos_token_ids=(), max_position_embeddings=100_000)).eval()
    with serving(endless, tokenizer) as (address, server):
        page = Page(driver, address)
        page.click("settings")
        page.fill("max_tokens", 90_000)
        page["message"].send_keys("hello", Keys.ENTER)
        page.until(lambda: len(page.driver.find_elements(By.CLASS_NAME, "turn")) == 2)
        page.until(lambda: page.driver.find_elements(By.CLASS_NAME, "turn")[1].get_attribute("textContent"))
        page.click("stop")
        page.until(page.is_answered)
        assert page["chat-note"].text == "stopped"
        page.until(lambda: server.engine.running == 0)


@pytest.mark.slow
def test_canvas_fills_in_its_own_order_and_the_slider_goes_back(
    page: Page, network: tuple[Llama, PreTrainedTokenizerBase]
) -> None:
    page.click("tab-canvas")
    page.fill("canvas-prompt", "ab")
    page.fill("canvas-tokens", 8)
    page["canvas-order"].send_keys("random")
    page.press("canvas-go")
    out = anyorder.generate(*network, "ab", order="random", max_new_tokens=8, seed=0)
    assert page["canvas-at"].text == f"{out.passes} of {out.passes}"
    tokens = page.driver.find_elements(By.CSS_SELECTOR, "#canvas-text .token")
    assert "".join(str(token.get_attribute("textContent")) for token in tokens) == network[1].decode(out.token_ids)
    page["canvas-slider"].send_keys(Keys.HOME)
    assert not page.driver.find_elements(By.CSS_SELECTOR, "#canvas-text .token")
    page["canvas-slider"].send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    shown = page.driver.find_elements(By.CSS_SELECTOR, "#canvas-text .token")
    assert len(shown) == 2
    assert "probability" in str(shown[0].get_attribute("title"))


@pytest.mark.slow
def test_gaps_fill(page: Page) -> None:
    page.click("tab-gaps")
    page.fill("gaps-text", "ab [...] cd [...] e")
    page.fill("gaps-tokens", 3)
    page.fill("gaps-n", 2)
    page.press("gaps-go")
    found = page.driver.find_elements(By.CLASS_NAME, "alternative")
    assert len(found) == 2
    for alternative in found:
        assert re.fullmatch(r"ab.*? cd.*? e", str(alternative.get_attribute("textContent")), re.DOTALL)
        assert len(alternative.find_elements(By.CLASS_NAME, "filled")) == 2


@pytest.mark.slow
def test_phrasings_are_fused(page: Page, network: tuple[Llama, PreTrainedTokenizerBase]) -> None:
    page.click("tab-fuse")
    page.fill("fuse-phrasings", "one\ntwo\nthree")
    page.fill("fuse-suffix", " so")
    page.fill("fuse-tokens", 5)
    page.press("fuse-go")
    out = anyorder.fuse(*network, ["one", "two", "three"], suffix=" so", max_new_tokens=5, order="left-to-right")
    assert page["fuse-answer"].get_attribute("textContent") == f" so{out.text}"
    shares = page.driver.find_elements(By.CLASS_NAME, "share")
    assert len(shares) == 3
    assert all(re.search(r"\d+ %$", share.text) for share in shares)


@pytest.mark.slow
def test_two_modes_side_by_side(page: Page, network: tuple[Llama, PreTrainedTokenizerBase]) -> None:
    page.click("tab-compare")
    page.fill("compare-prompt", "ab")
    page.fill("compare-tokens", 8)
    page["left-order"].send_keys("any-order")
    page["right-order"].send_keys("diffusion")
    page.press("compare-go")
    for side, order in (("left", "any-order"), ("right", "diffusion")):
        out = anyorder.generate(*network, "ab", order=order, max_new_tokens=8, seed=0)
        assert page[f"{side}-text"].get_attribute("textContent") == f"ab{out.text}"
        assert "tokens/s" in page[f"{side}-note"].text


@pytest.mark.slow
def test_by_keyboard_and_on_a_phone(page: Page) -> None:
    """Arrow keys change the view; nothing is wider than a narrow window."""
    page["tab-chat"].send_keys(Keys.ARROW_RIGHT)
    assert page["canvas"].is_displayed()
    assert not page["chat"].is_displayed()
    page.driver.set_window_size(390, 800)
    try:
        for name in ("chat", "canvas", "gaps", "fuse", "compare"):
            page.click(f"tab-{name}")
            wide = page.driver.execute_script(
                "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
            assert wide == 0, name
    finally:
        page.driver.set_window_size(1100, 800)


@pytest.mark.slow
def test_what_is_refused_is_shown(driver: webdriver.Chrome, served: tuple[str, Server]) -> None:
    page = Page(driver, served[0])
    page.click("tab-gaps")
    page.fill("gaps-tokens", 9000)
    page.press("gaps-go")
    assert "256" in page["gaps-note"].text
    assert "bad" in str(page["gaps-note"].get_attribute("class"))
    driver.get_log("browser")  # the browser reports the status of the refusal
