"""The picture of docs/synthmnist.md."""

import pytest

from experiments.synthmnist_figure import gallery

pytestmark = pytest.mark.usefixtures("one_thread", "own_cache")


def test_gallery(tmp_path, digits):
    gallery(tmp_path / "picture.png", digits, rows_per_class=1, blocks=((12, 0), (12, 8)))
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="blocks .*20"):
        gallery(tmp_path / "picture.png", digits, blocks=((20, 0),))
