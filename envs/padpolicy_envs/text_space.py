"""Instructions: which words a reset asks for, and a text space that survives `AsyncVectorEnv`.

Gymnasium (1.0 to 1.4 at least) reads texts out of the workers' shared memory once, when the vector is made, and then
returns that first reading for ever: every instruction would be "aaaa...". Here reading gives a view that decodes what
the memory holds at the time it is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Text
from gymnasium.vector.utils import read_from_shared_memory


def worded(task: Any, paraphrase: int | str) -> str:
    """A task in the words that a reset asks for.

    Args:   task: has `paraphrases` and `held_out_paraphrase`.   paraphrase: an index (0 is canonical) or "held_out".
    Raises: ValueError for any other.
    """
    if paraphrase == "held_out":
        return task.held_out_paraphrase
    if not isinstance(paraphrase, (int, np.integer)) or not 0 <= paraphrase < len(task.paraphrases):
        raise ValueError(f"paraphrase: expected 0 .. {len(task.paraphrases) - 1} or 'held_out', got {paraphrase!r}")
    return task.paraphrases[int(paraphrase)]


class Instruction(Text):
    """A sentence; the same as `Text` in every respect but how vectors of environments read it."""


class _LiveTexts(Sequence):
    """The texts of n environments [n], decoded from shared memory when looked at; copying gives a tuple of str."""

    def __init__(self, space: Instruction, memory: Any, n: int) -> None:
        self._characters = space.character_list
        self._codes = np.frombuffer(memory.get_obj(), dtype=np.int32).reshape(n, space.max_length)

    def __len__(self) -> int:
        return len(self._codes)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        return "".join(self._characters[code] for code in self._codes[index] if code < len(self._characters))

    def __repr__(self) -> str:
        return repr(tuple(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> tuple[str, ...]:
        return tuple(self)


@read_from_shared_memory.register(Instruction)
def _read(space: Instruction, shared_memory: Any, n: int = 1) -> _LiveTexts:
    return _LiveTexts(space, shared_memory, n)
