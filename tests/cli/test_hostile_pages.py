"""Names and labels that are HTML, scripts or links do nothing in any page: shown by a real browser, as text."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from indistill.cli.bench_output import write_bench_page
from indistill.export.bench_report import read_report
from indistill.retrieval.serve.settings import Settings
from tests.browser import NEEDS_BROWSER, open_browser
from tests.cli.calls import REPOSITORY, succeed
from tests.cli.files import list_files
from tests.retrieval.serving import serve_index

pytestmark = NEEDS_BROWSER
OWN = "document.title='owned'"
LABELS = (
    f"<img src=x onerror={OWN}>",
    f"javascript:{OWN}",
    f'"onmouseover="{OWN}" autofocus onfocus="{OWN}',
    "one",
    "</style>".replace("/", ""),
)
NAMES = (
    f"<img src=x onerror={OWN}>.png",
    f"<svg onload={OWN}>\u2028.png",
    f"<\\script><script>{OWN}<\\script>.png".replace("\\", "/"),  # in folders, as a name has no slash
    f"';{OWN};'`${{{OWN}}}{{{{7*7}}}}.png",
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with open_browser(tmp_path_factory.mktemp("browser")) as started:
        yield started


@pytest.fixture(scope="module")
def hostile(workspace: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Returns a gallery of hostile names and labels, an index of it and a run in a hostile folder."""
    root = tmp_path_factory.mktemp("hostile")
    images = list_files(workspace["gallery"])
    for position, (label, name) in enumerate((label, name) for label in LABELS for name in NAMES):
        path = root / "gallery" / label / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(images[position], path)
    succeed("index", "build", root / "gallery", "--model", workspace["model"], "--out", root / "index")
    run = Path(shutil.copytree(workspace["run"], root / f"$x_{{$<img src=x onerror={OWN}>"))
    return {"gallery": root / "gallery", "index": root / "index", "run": run}


def look(driver: webdriver.Chrome, page: Path, shown: str) -> None:
    """Opens a page, which must show a text and hold nothing that a name brought in."""
    driver.get(page.as_uri())
    check(driver, shown)
    (policy,) = driver.find_elements(By.CSS_SELECTOR, "meta[http-equiv='Content-Security-Policy']")
    assert str(policy.get_attribute("content")).startswith("default-src 'none';")


def check(driver: webdriver.Chrome, shown: str) -> None:
    text = driver.execute_script("return document.body.textContent")
    assert shown in text, text[:2000]
    assert driver.title != "owned"
    for selector in ("img[src='x']", "svg[onload]", "[onmouseover]", "[onfocus]", "[onerror]", "a[href^='javascript']"):
        assert not driver.find_elements(By.CSS_SELECTOR, selector), selector
    assert "49.png" not in text  # {{7*7}}


def test_the_contact_sheet(driver: webdriver.Chrome, hostile: dict[str, Path], tmp_path: Path) -> None:
    query = hostile["gallery"] / LABELS[0] / NAMES[0]
    succeed("search", hostile["index"], query, "-k", 16, "--html", tmp_path / "sheet.html")
    look(driver, tmp_path / "sheet.html", f"{LABELS[0]}/{NAMES[2]}")


def test_the_groups_of_duplicates(driver: webdriver.Chrome, hostile: dict[str, Path], tmp_path: Path) -> None:
    result = succeed("dedupe", hostile["index"], "--threshold", 0.0001, "--format", "html")
    (tmp_path / "groups.html").write_text(result.out, encoding="utf-8")
    look(driver, tmp_path / "groups.html", NAMES[0])


def test_the_evaluation(driver: webdriver.Chrome, hostile: dict[str, Path], tmp_path: Path) -> None:
    page = tmp_path / "evaluation.html"
    succeed("evaluate", hostile["index"], "--queries", hostile["gallery"], "--per-class", "--html", page)
    look(driver, page, LABELS[0])


def test_the_report_of_a_run(driver: webdriver.Chrome, hostile: dict[str, Path]) -> None:
    succeed("report", hostile["run"], "--data", hostile["gallery"], "--gallery", hostile["gallery"])
    look(driver, hostile["run"] / "report.html", NAMES[0])


def test_the_comparison(driver: webdriver.Chrome, hostile: dict[str, Path], tmp_path: Path) -> None:
    page, sets = tmp_path / "compare.html", ("--gallery", hostile["gallery"], "--queries", hostile["gallery"])
    succeed("compare", hostile["run"], *sets, "--no-latency", "--html", page)
    look(driver, page, hostile["run"].name)


def test_the_bench(driver: webdriver.Chrome, tmp_path: Path) -> None:
    text = (REPOSITORY / "benchmarks" / "fuzz" / "seeds" / "bench.json").read_text(encoding="utf-8")
    (tmp_path / "bench.json").write_text(text.replace("MODEL", f"$x_{{$日本<img src=x onerror={OWN}>.onnx"), "utf-8")
    write_bench_page(tmp_path / "bench.html", read_report(tmp_path / "bench.json"))
    look(driver, tmp_path / "bench.html", LABELS[0])


def test_the_search_page(driver: webdriver.Chrome, hostile: dict[str, Path]) -> None:
    with serve_index(hostile["index"], Settings(threads=1)) as server:
        driver.get(server.url)
        WebDriverWait(driver, 30).until(lambda _: driver.find_elements(By.CSS_SELECTOR, ".hit .place"))
        check(driver, LABELS[0])
        for hit in driver.find_elements(By.CSS_SELECTOR, ".hit"):
            assert str(hit.get_attribute("href")).startswith(server.url)
        driver.find_elements(By.CSS_SELECTOR, ".hit")[0].click()
        WebDriverWait(driver, 30).until(lambda _: not driver.find_element(By.ID, "asked").get_attribute("hidden"))
        WebDriverWait(driver, 30).until(lambda _: "In the index: " in driver.find_element(By.ID, "asked").text)
        check(driver, "In the index: ")


def test_the_check_itself_can_fail(driver: webdriver.Chrome, tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text(f"<body>{NAMES[0]}</body>", encoding="utf-8")
    with pytest.raises(AssertionError):
        look(driver, tmp_path / "bad.html", "png")
