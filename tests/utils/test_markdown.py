"""Tables in Markdown."""

from projkern.utils.markdown import table


def test_first_column_to_the_left_and_numbers_to_the_right():
    assert table(("model", "loss", "n"), [("M_1", "2.5", "3"), ("P_1/4", "2.7", "")]) == (
        "| model | loss | n |\n|---|--:|--:|\n| M_1 | 2.5 | 3 |\n| P_1/4 | 2.7 |  |"
    )


def test_more_columns_to_the_left():
    rows = iter([["a", "b", "1"]])  # any iterable
    assert table(["setting", "value", "n"], rows, left=2) == "| setting | value | n |\n|---|---|--:|\n| a | b | 1 |"
    assert table(("a", "b"), [], left=0) == "| a | b |\n|--:|--:|"
