import shutil

import pytest


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="a browser is driven by playwright")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("there is no Chromium to show the page")
    with playwright.sync_playwright() as driver:
        shown = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield shown
        shown.close()


@pytest.fixture
def page():
    pytest.importorskip("gradio", reason="the page needs Gradio")
    from projkern.exploration import page

    return page
