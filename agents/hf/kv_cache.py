"""A key-value cache in memory that is reserved once, because a growing cache copies everything at every token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

if TYPE_CHECKING:
    from torch import Tensor


class ReservedLayer(DynamicLayer):  # type: ignore[misc]
    """A cache layer of transformers with room for `capacity` positions; keys and values are views of what is filled."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity
        self._room: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add keys and values, (B, heads, new, width); return all so far, (B, heads, length, width)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self._room is None:
            self._room = (self._reserve(key_states), self._reserve(value_states))
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, start:end] = new
        self.keys, self.values = self._room[0][:, :, :end], self._room[1][:, :, :end]
        return self.keys, self.values

    def _reserve(self, like: Tensor) -> Tensor:
        rows, heads, _, width = like.shape
        return like.new_empty(rows, heads, self._capacity, width)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows."""
        if self._room is not None:
            length = self.get_seq_length()
            self._room = (self._room[0][indices], self._room[1][indices])
            self.keys, self.values = self._room[0][:, :, :length], self._room[1][:, :, :length]


def reserved_cache(config: Any, capacity: int) -> Any:
    """Return a cache for `capacity` positions; other layers (sliding windows, recurrent states) are unchanged."""
    cache = DynamicCache(config=config)
    cache.layers = [ReservedLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
