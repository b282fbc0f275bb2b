"""A reference to a module that is no submodule, which copies share."""

from __future__ import annotations

from typing import Any

from torch import nn


class Used:
    """A module that another uses and does not own: it is no submodule, and a copy of the user uses it too.

    Where both are copied together, in whichever order, the copy of the user uses the copy: which one that is, the memo
    of ``copy.deepcopy`` knows once all is copied.
    """

    def __init__(self, module: nn.Module, memo: dict[int, Any] | None = None) -> None:
        self._module, self._memo = module, memo

    def get(self) -> Any:
        if self._memo is not None:
            self._module, self._memo = self._memo.get(id(self._module), self._module), None
        return self._module

    def __deepcopy__(self, memo: dict[int, Any]) -> Used:
        return Used(self.get(), memo)

    def __reduce__(self) -> tuple[type[Used], tuple[nn.Module]]:
        return Used, (self.get(),)
