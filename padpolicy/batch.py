"""THE data contract: names, shapes, dtypes and units of everything that travels between disk and motor.

A `Sample` (sample.py) is one window or one observation in numpy, a `Batch` many of them in torch. Imports numpy and
torch only; everything else in the library may import it.

Letters: B batch, O observation steps, F future frames, T action steps, A action dims, P proprio dims, H W image size,
C h w latent size. `<cam>` is a camera's name; cameras may differ in size because each is a field of its own.

| field                 | shape             | dtype, unit                         | may be absent |
|-----------------------|-------------------|-------------------------------------|---------------|
| obs.rgb_<cam>         | (B, O, H, W, 3)   | uint8, 0..255                       | yes           |
| obs.depth_<cam>       | (B, O, H, W)      | uint16 millimetres, 0 = invalid     | yes           |
| obs.latent_<cam>      | (B, O, C, h, w)   | float16, unit variance per channel  | made from rgb |
| obs.proprio           | (B, O, P)         | float32, units in the store         | yes           |
| future.rgb_<cam>      | (B, F, H, W, 3)   | as obs                              | yes           |
| future.depth_<cam>    | (B, F, H, W)      | as obs                              | yes           |
| future.latent_<cam>   | (B, F, C, h, w)   | as obs                              | made from rgb |
| action                | (B, T, A)         | float32, real environment actions   | yes: a video  |
| executed              | (B, T, A)         | as action: what the robot was told  | yes: = action |

*Missing means absent, not zero.* `has[field]` says per sample whether the field is there; what stands in `fields` where
it is not may be anything, NaN included, and must never reach a layer: consumers pass it through `present`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from padpolicy.sample import TIME_AXES, Sample


@dataclass
class Batch:
    """Many samples, stacked. The module docstring lists the fields."""

    fields: dict[str, Tensor]
    has: dict[str, Tensor]  # field name, and "text" -> (B,) bool
    is_pad: dict[str, Tensor]  # time axis -> (B, n) bool
    time_s: dict[str, Tensor]  # time axis -> (B, n) float32, seconds from "now"
    text: list[str]
    robot: list[str]
    index: Tensor  # (B,) int64
    seed: int = 0  # (seed, step, index) keys every random draw of training
    step: int = 0

    def __len__(self) -> int:
        return len(self.text)

    def has_field(self, name: str) -> Tensor:
        """(B,) bool: is the field there? False for all if the batch has no such field."""
        there = self.has.get(name)
        return torch.zeros(len(self), dtype=torch.bool, device=self.index.device) if there is None else there

    def zeros(self, *shape: int) -> Tensor:
        """float32 zeros where the batch is."""
        return torch.zeros(shape, device=self.index.device)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        def move(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.to(device, non_blocking=non_blocking) for name, tensor in tensors.items()}

        return dataclasses.replace(
            self,
            fields=move(self.fields),
            has=move(self.has),
            is_pad=move(self.is_pad),
            time_s=move(self.time_s),
            index=self.index.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> Batch:
        def pin(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.pin_memory() for name, tensor in tensors.items()}

        return dataclasses.replace(
            self,
            fields=pin(self.fields),
            has=pin(self.has),
            is_pad=pin(self.is_pad),
            time_s=pin(self.time_s),
            index=self.index.pin_memory(),
        )

    def select(self, rows: Tensor) -> Batch:
        """The samples `rows` (n,) int64, in that order."""
        rows = rows.to(self.index.device)

        def take(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor[rows] for name, tensor in tensors.items()}

        return dataclasses.replace(
            self,
            fields=take(self.fields),
            has=take(self.has),
            is_pad=take(self.is_pad),
            time_s=take(self.time_s),
            text=[self.text[i] for i in rows.tolist()],
            robot=[self.robot[i] for i in rows.tolist()],
            index=self.index[rows],
        )

    @property
    def instructions(self) -> list[str | None]:
        """What each sample is told; None where nothing is."""
        return [text if there else None for text, there in zip(self.text, self.has["text"].tolist(), strict=True)]

    def describe(self) -> str:
        """The batch as a table: name, shape, dtype, smallest and largest value, share present."""
        lines = [f"{'field':24} {'shape':22} {'dtype':8} {'min':>10} {'max':>10} present"]
        for name, tensor in self.fields.items():
            there = tensor[self.has[name]].float()
            low, high = (f"{there.min():.4g}", f"{there.max():.4g}") if there.numel() else ("-", "-")
            dtype = str(tensor.dtype).removeprefix("torch.")
            share = self.has[name].float().mean()
            lines.append(f"{name:24} {str(tuple(tensor.shape)):22} {dtype:8} {low:>10} {high:>10} {share:.0%}")
        lines.append(f"{'text':24} {self.has['text'].float().mean():.0%} present, e.g. {self.text[:2]}")
        return "\n".join(lines)


def collate(samples: Sequence[Sample], seed: int = 0, step: int = 0) -> Batch:
    """Stacks samples. A field that only some of them have is filled with zeros where it is absent and says so in `has`.

    Raises:  ValueError if two samples have the same field in different shapes or dtypes.
    """
    fields, has, is_pad, time_s = {}, {}, {}, {}
    for name in sorted({name for sample in samples for name in sample.fields}):
        first = next(sample.fields[name] for sample in samples if name in sample.fields)
        stacked = np.zeros((len(samples), *first.shape), first.dtype)
        for row, sample in enumerate(samples):
            if name not in sample.fields:
                continue
            array = sample.fields[name]
            if array.shape != first.shape or array.dtype != first.dtype:
                raise ValueError(
                    f"field {name!r}: sample {row} is {array.dtype}{array.shape}, an earlier one is "
                    f"{first.dtype}{first.shape}. Samples of one batch need one shape per field: set data.image_size, "
                    "or give the cameras different names."
                )
            stacked[row] = array
        fields[name] = torch.from_numpy(stacked)
        has[name] = torch.tensor([name in sample.fields for sample in samples])
    for axis in TIME_AXES:
        there = [sample for sample in samples if axis in sample.time_s]
        if not there:
            continue
        n = len(there[0].time_s[axis])
        is_pad[axis] = torch.from_numpy(np.stack([s.is_pad.get(axis, np.ones(n, bool)) for s in samples]))
        time_s[axis] = torch.from_numpy(
            np.stack([s.time_s.get(axis, there[0].time_s[axis]) for s in samples]).astype(np.float32)
        )
    has["text"] = torch.tensor([sample.text is not None for sample in samples])
    return Batch(
        fields=fields,
        has=has,
        is_pad=is_pad,
        time_s=time_s,
        text=[sample.text or "" for sample in samples],
        robot=[sample.robot for sample in samples],
        index=torch.tensor([sample.index for sample in samples], dtype=torch.int64),
        seed=seed,
        step=step,
    )


def present(x: Tensor, has: Tensor) -> Tensor:
    """`x` where `has`, else 0. `has` is broadcast from the left. Multiplying would not do: NaN * 0 is NaN."""
    return torch.where(
        has.reshape(has.shape + (1,) * (x.ndim - has.ndim)),
        x,
        torch.zeros((), dtype=x.dtype, device=x.device),
    )
