"""Part: a module that a recommender is made of, and the one moment at which it hears of the data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightrec.configurable import Configurable

if TYPE_CHECKING:
    from lightrec.data.corpus import Corpus


class Part(Configurable, nn.Module):
    """A configured module, some of whose buffers may be fitted to data.

    A constructor is cheap and offline: it knows numbers and names, never data. What depends on data (counts,
    neighbours, vectors, codes) is a fitted buffer. `connect` fills it before a run begins. Loading a checkpoint gives
    it shape and content, so that inference needs no data.
    """

    def connect(self, corpus: Corpus) -> None:
        """Takes from the data what this part needs of them; called once before a run begins.

        The recommender calls it on every part below it, whoever wraps it. By default a part needs nothing.
        """

    def register_fitted(self, name: str, tensor: Tensor) -> None:
        """Registers a buffer whose shape only the data know; `tensor` is what it holds until then."""
        self.register_buffer(name, tensor)
        if "_fitted" not in self.__dict__:
            self._fitted: list[str] = []
        self._fitted.append(name)

    def _load_from_state_dict(self, state_dict, prefix, *rest) -> None:
        # torch offers no public moment at which a module sees the shapes of a checkpoint before they are compared
        for name in self.__dict__.get("_fitted", ()):
            saved = state_dict.get(prefix + name)
            if saved is not None:
                setattr(self, name, torch.empty_like(saved, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *rest)
