"""The page of a run on tasks of text: what its models write, and that it works in a real browser."""

import pytest
from browsing import served, watched_page
from task_texts import NAMES, SETTINGS, text_of, write_folder

from projkern.exploration.writers import Writers
from projkern.language.run import run as train_run
from projkern.language.trained import LanguageRun
from projkern.models.sampling import Draws
from projkern.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explore")
    tasks = write_folder(folder / "tasks")
    train_run(folder / "run", SETTINGS.replace(tasks=str(tasks), t="source", task_dim=3))
    return folder / "run"


@pytest.fixture(scope="module")
def writers(run):
    return Writers(LanguageRun.open(run))


def test_every_model_writes_for_a_task(writers):
    assert list(map(str, writers.names)) == ["P_1/2", "M~_1/2", "M_1"]
    texts = list(writers.write(writers.t("blue", ""), "blue", Draws(0.5)))
    assert [text.name for text in texts] == list(writers.names)
    assert [text.generation_seconds is not None for text in texts] == [True, False, False]
    assert texts[0].parameters < texts[1].parameters < texts[2].parameters


def test_a_sample_of_text_goes_before_the_task(writers):
    sample = text_of("red", 200)
    assert writers.t("blue", sample).equal(writers.run.t_like(sample))
    assert writers.t("blue", "  ").equal(writers.run.t_of("blue"))
    with pytest.raises(InputError, match="16 tokens"):
        writers.t("blue", "red")


def test_text_is_shown_as_text(page, writers):
    from projkern.exploration import text_page

    text = next(writers.write(writers.t("blue", ""), "<b>&", Draws(0.0)))
    shown = text_page.text_html(text, "<b>&")
    assert "<b>&lt;b&gt;&amp;</b>" in shown and "parameters, generated in " in shown


def test_a_task_chosen_in_a_browser(page, browser, run):
    with served(run) as address:
        shown, trouble = watched_page(browser, address)
        shown.goto(address)
        boxes = [f"#text-{i}" for i in range(3)]
        for box in boxes:
            shown.wait_for_selector(f"{box} p")

        def prompts_become(text):
            """Each box holds a text, newly written after this prompt."""
            for box in boxes:
                shown.wait_for_function(
                    "([box, text]) => document.querySelector(`${box} b`).textContent == text", arg=[box, text]
                )

        assert "M̃_1/2" in shown.inner_text(boxes[1])
        prompt = shown.locator("#prompt textarea, #prompt input")
        prompt.fill("red")
        shown.get_by_role("button", name="write").click()
        prompts_become("red")
        prompt.fill("green")
        shown.locator("#task input").click()
        shown.get_by_role("option", name=NAMES[2]).click()
        prompts_become("green")
        assert trouble == []


def test_a_run_that_takes_no_samples_in_a_browser(page, browser, tmp_path):
    tasks = write_folder(tmp_path / "tasks")
    train_run(tmp_path / "run", SETTINGS.replace(tasks=str(tasks)))
    with served(tmp_path / "run") as address:
        shown, trouble = watched_page(browser, address)
        shown.goto(address)
        shown.wait_for_selector("#text-2 p")
        assert trouble == [] and not shown.locator("#sample").is_visible()
