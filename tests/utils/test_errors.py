"""Errors of this package are also those of Python that callers know."""

import pytest

from projkern.utils.errors import InputError, MissingDependency, ProjkernError


@pytest.mark.parametrize(("kind", "builtin"), [(InputError, ValueError), (MissingDependency, ImportError)])
def test_errors_have_two_bases(kind, builtin):
    for base in (builtin, ProjkernError):
        with pytest.raises(base, match="size must be 4"):
            raise kind("size must be 4")
