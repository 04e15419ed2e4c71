"""The search page in a real browser: Debian's chromium and chromium-driver, without which these tests are skipped.

The screenshot of the docs is made by them too, over a folder of photographs:
`INDISTILL_SCREENSHOT=docs/search-page.png INDISTILL_PHOTOS=FOLDER python -m pytest -k screenshot tests/retrieval`
"""

import io
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from indistill.retrieval.serve.settings import Settings
from tests.browser import NEEDS_BROWSER, open_browser
from tests.retrieval.serving import Server, build_small_index, export_model, serve_index, write_gallery

pytestmark = NEEDS_BROWSER
SETTINGS = Settings(threads=1)
TOKEN = "a-token-for-the-tests"
WIDE, PHONE = (1280, 900), (360, 740)
SCREENSHOT, PHOTOS = "INDISTILL_SCREENSHOT", "INDISTILL_PHOTOS"


class Page:
    """The page as a user has it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, server: Server, path: str = "/") -> None:
        self.driver.get(server.url + path)

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def wait(self, script: str) -> None:
        """Waits until an expression of JavaScript is true."""
        WebDriverWait(self.driver, 15, 0.02).until(
            lambda driver: driver.execute_script(f"return Boolean({script})"), script
        )

    def wait_for_results(self, query: str) -> list[str]:
        """Returns the paths of the results to the query of this name, when its pictures are there."""
        self.wait(
            f"document.getElementById('asked-name').textContent === '{query}' && document.querySelector('.hit')"
            " && !document.querySelector('[aria-busy]') && document.querySelector('.hit img.there')"
        )
        links = self.driver.find_elements(By.CSS_SELECTOR, ".hit")
        return [str(link.get_attribute("title")) for link in links]

    def upload(self, path: Path) -> None:
        self.find("#file").send_keys(str(path))

    def set_size(self, size: tuple[int, int], *, dark: bool = False) -> None:
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def press(self, *keys: str) -> None:
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def read_log(self) -> list[str]:
        return [str(entry["message"]) for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with open_browser(tmp_path_factory.mktemp("browser")) as started:
        yield started


@pytest.fixture
def page(driver: webdriver.Chrome) -> Page:
    driver.get("about:blank")
    page = Page(driver)
    page.set_size(WIDE)
    page.read_log()
    return page


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gallery(tmp_path_factory.mktemp("gallery"))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, gallery: Path) -> Path:
    folder = tmp_path_factory.mktemp("built")
    return build_small_index(gallery, export_model(folder / "student.onnx"), folder / "index")


@pytest.fixture(scope="module")
def server(index: Path) -> Iterator[Server]:
    with serve_index(index, SETTINGS) as running:
        yield running


def test_an_upload_shows_results_and_a_click_searches_on(page: Page, server: Server, gallery: Path) -> None:
    page.open(server)
    page.wait("document.getElementById('index').textContent === '40 images'")
    page.upload(gallery / "cat" / "007.png")
    paths = page.wait_for_results("007.png")
    assert (len(paths), paths[0]) == (24, "cat/007.png")
    assert "24 results" in page.find("#status").text
    assert page.find(".hit .score").text == "1.000"
    second = page.driver.find_elements(By.CSS_SELECTOR, ".hit")[1]
    second.click()
    found = page.wait_for_results(paths[1].rsplit("/", 1)[1])
    assert "?id=" in page.driver.current_url
    assert paths[1] not in found  # an image is not its own result
    assert len(found) == 24
    page.driver.back()
    assert page.wait_for_results("007.png") == paths
    page.driver.back()
    page.wait(
        "document.getElementById('asked').hidden && document.getElementById('status').textContent.startsWith('Some')"
    )
    assert page.find(".hit .score").text == ""
    page.driver.forward()
    assert page.wait_for_results("007.png") == paths
    assert page.read_log() == []  # nothing was blocked, missing or thrown


def test_an_image_can_be_dropped_and_pasted(page: Page, server: Server) -> None:
    make = """
        const canvas = document.createElement("canvas");
        canvas.width = canvas.height = 40;
        canvas.getContext("2d").fillRect(0, 0, 20, 40);
        const done = arguments[arguments.length - 1];
        canvas.toBlob((blob) => {
          const data = new DataTransfer();
          data.items.add(new File([blob], "%s.png", { type: "image/png" }));
          document.dispatchEvent(new %s);
          done();
        });
    """
    page.open(server)
    drop = 'DragEvent("drop", { dataTransfer: data, cancelable: true })'
    page.driver.execute_async_script(make % ("dropped", drop))
    page.wait_for_results("dropped.png")
    paste = 'ClipboardEvent("paste", { clipboardData: data, cancelable: true })'
    page.driver.execute_async_script(make % ("pasted", paste))
    page.wait_for_results("pasted.png")


def test_a_filter_and_a_number_hold_for_the_next_searches(page: Page, server: Server, gallery: Path) -> None:
    page.open(server)
    page.upload(gallery / "cat" / "001.png")
    page.wait_for_results("001.png")
    page.find("#where").send_keys("label = 'döner'", Keys.ENTER)
    page.wait("document.querySelectorAll('.hit').length === 20")
    paths = page.wait_for_results("001.png")
    assert all(path.startswith("döner/") for path in paths)
    page.find("#count option").click()
    page.wait("document.querySelectorAll('.hit').length === 12")
    page.find(".hit").click()
    found = page.wait_for_results(paths[0].rsplit("/", 1)[1])
    assert len(found) == 12
    assert all(path.startswith("döner/") for path in found)
    page.driver.refresh()  # the address holds the search
    assert page.wait_for_results(paths[0].rsplit("/", 1)[1]) == found
    assert page.find("#where").get_attribute("value") == "label = 'döner'"


def test_what_fails_is_said(page: Page, server: Server, gallery: Path, tmp_path: Path) -> None:
    text, disguised = tmp_path / "notes.txt", tmp_path / "disguised.png"
    text.write_text("no image")
    disguised.write_text("no image")
    page.open(server)
    page.find("#search button").click()
    page.wait("document.getElementById('error').textContent.startsWith('No image yet.')")
    page.upload(text)
    page.wait("document.getElementById('error').textContent.startsWith('This is not an image.')")
    assert "notes.txt" in page.find("#error").text
    page.upload(disguised)
    page.wait("document.getElementById('error').textContent.includes('not an image that Pillow can read')")
    assert page.find("#error").is_displayed()
    assert not page.driver.find_elements(By.CSS_SELECTOR, "#results li")
    page.upload(gallery / "cat" / "002.png")
    page.wait_for_results("002.png")
    assert not page.find("#error").is_displayed()
    page.find("#where").send_keys("nonsense =", Keys.ENTER)
    page.wait("document.getElementById('error').textContent.startsWith('The filter cannot be used.')")
    assert page.find("#where").get_attribute("aria-invalid") == "true"


def test_an_upload_above_the_limit_is_not_sent(page: Page, index: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    large.write_bytes(bytes(200_000))
    with serve_index(index, replace(SETTINGS, max_upload_bytes=100_000)) as running:
        page.open(running)
        page.wait("document.getElementById('index').textContent")
        page.upload(large)
        page.wait("document.getElementById('error').textContent.includes('It has 0.2 MB, the limit is 0.1 MB')")


def test_all_of_it_works_by_keyboard(page: Page, server: Server, gallery: Path) -> None:
    page.open(server)
    page.upload(gallery / "cat" / "003.png")
    paths = page.wait_for_results("003.png")
    page.find("#search button").click()
    page.wait_for_results("003.png")
    page.press(Keys.TAB)
    focused = "document.activeElement.title"
    assert page.driver.execute_script(f"return {focused}") == paths[0]
    outline = page.driver.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    columns = page.driver.execute_script(
        "return getComputedStyle(document.getElementById('results')).gridTemplateColumns.split(' ').length"
    )
    page.press(Keys.ARROW_RIGHT)
    assert page.driver.execute_script(f"return {focused}") == paths[1]
    page.press(Keys.ARROW_DOWN, Keys.ARROW_LEFT)
    assert page.driver.execute_script(f"return {focused}") == paths[columns]
    page.press(Keys.ENTER)
    found = page.wait_for_results(paths[columns].rsplit("/", 1)[1])
    assert page.driver.execute_script(f"return {focused}") == found[0]
    page.press(Keys.ESCAPE)
    assert page.wait_for_results("003.png") == paths


def test_everything_has_a_name_for_those_who_do_not_see_it(page: Page, server: Server, gallery: Path) -> None:
    page.open(server)
    page.upload(gallery / "cat" / "004.png")
    page.wait_for_results("004.png")
    nodes = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles: dict[str, list[str]] = {}
    for node in nodes:
        if not node.get("ignored"):
            roles.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    assert roles["textbox"] == ["Filter"]
    assert roles["combobox"] == ["Results"]
    assert "Search" in roles["button"]
    assert all(roles["link"])
    assert any(name.startswith("cat/004.png, score 1.000, cat") for name in roles["link"])
    assert "Query: 004.png" in roles["image"]
    assert roles["search"] == ["Image search"]
    assert "main" in roles
    assert page.find("#status").get_attribute("aria-live") == "polite"
    assert page.find("#error").get_attribute("role") == "alert"


@pytest.mark.parametrize("width", [320, 360, 768])
def test_no_width_scrolls_sideways(page: Page, server: Server, gallery: Path, width: int) -> None:
    page.set_size((width, 740))
    page.open(server)
    page.upload(gallery / "cat" / "005.png")
    page.wait_for_results("005.png")
    root = "document.documentElement"
    scroll, client = page.driver.execute_script(f"return [{root}.scrollWidth, {root}.clientWidth]")
    assert scroll == client
    assert width - client in (0, 15)  # the bar on the right takes some
    tops = page.driver.execute_script("return [...document.querySelectorAll('.hit')].map(h => h.offsetTop)")
    assert tops.count(tops[0]) >= 2  # two beside each other, on a phone too


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_has_contrast_in_light_and_dark(page: Page, server: Server, gallery: Path, dark: bool) -> None:
    page.set_size(WIDE, dark=dark)
    page.open(server)
    page.upload(gallery / "cat" / "006.png")
    page.wait_for_results("006.png")
    script = """
        const style = getComputedStyle(document.documentElement);
        return ["ground", "panel", "ink", "quiet", "accent", "on-accent", "error", "error-wash"]
          .map((name) => style.getPropertyValue("--" + name).trim());
    """
    ground, panel, ink, quiet, accent, on_accent, error, error_wash = page.driver.execute_script(script)
    assert (measure_luminance(ground) < 0.1) == dark
    for text, behind in (
        (ink, ground),
        (quiet, ground),
        (quiet, panel),
        (accent, panel),
        (on_accent, accent),
        (error, error_wash),
    ):
        assert measure_contrast(text, behind) >= 4.5, (text, behind)  # WCAG 2 AA


def measure_luminance(colour: str) -> float:
    """Returns the relative luminance of #rrggbb. Reference: WCAG 2.2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def measure_contrast(first: str, second: str) -> float:
    """Returns the contrast ratio, from 1 to 21. Reference: WCAG 2.2."""
    darker, lighter = sorted((measure_luminance(first), measure_luminance(second)))
    return (lighter + 0.05) / (darker + 0.05)


def test_the_token_is_asked_for_and_kept_for_the_tab_and_pictures_come_with_it(
    page: Page, index: Path, gallery: Path
) -> None:
    with serve_index(index, replace(SETTINGS, token=TOKEN)) as running:
        page.open(running)
        page.wait("document.getElementById('token-dialog').open")
        page.find("#token").send_keys("a-wrong-token-first", Keys.ENTER)
        page.wait("document.getElementById('token-reason').textContent.includes('does not know this token')")
        page.wait("document.getElementById('token-dialog').open")
        page.find("#token").send_keys(TOKEN, Keys.ENTER)
        page.wait("document.getElementById('index').textContent === '40 images'")
        page.upload(gallery / "cat" / "008.png")
        page.wait_for_results("008.png")
        assert str(page.find(".hit img").get_attribute("src")).startswith("blob:")
        page.find(".hit").click()
        page.wait("location.search.startsWith('?id=')")
        page.driver.refresh()
        page.wait_for_results("008.png")
        assert not page.find("#token-dialog").is_displayed()
        assert TOKEN not in page.driver.current_url


def test_it_writes_the_screenshot_of_the_docs_when_asked(
    page: Page, server: Server, gallery: Path, tmp_path: Path
) -> None:
    photos = os.environ.get(PHOTOS)
    if photos is None:
        take_screenshot(page, server, gallery / "cat" / "009.png", tmp_path / "page.png")
    else:
        query = sorted(path for path in Path(photos).rglob("*") if path.is_file())[0]
        index = build_small_index(Path(photos), export_model(tmp_path / "student.onnx"), tmp_path / "index")
        with serve_index(index, SETTINGS) as running:
            take_screenshot(page, running, query, tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as image:
        assert image.size == WIDE
        assert len(set(image.convert("L").tobytes())) > 100  # pictures, not an empty page
    if SCREENSHOT in os.environ:
        shutil.copyfile(tmp_path / "page.png", os.environ[SCREENSHOT])


def take_screenshot(page: Page, server: Server, query: Path, out: Path) -> None:
    page.open(server)
    page.upload(query)
    page.wait_for_results(query.name)
    page.driver.execute_script("document.querySelector('.hit').click()")  # without a pointer over the page
    page.wait("location.search.startsWith('?id=')")
    page.wait_for_results(query.name)
    page.wait(
        "[...document.images].every((i) => !i.src || i.complete) && document.getElementById('asked-image').complete"
    )
    page.driver.execute_script("document.activeElement.blur(); document.getAnimations().forEach((a) => a.finish())")
    with Image.open(io.BytesIO(page.driver.get_screenshot_as_png())) as image:
        image.convert("RGB").save(out, optimize=True)
