"""What a run says: TensorBoard events and `metrics.jsonl`, one line of numbers per event."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from padpolicy.batch import Batch, present
from padpolicy.policy import PadPolicy
from padpolicy.training.ema import EMA, averaged


class Log:
    """Writes `out/metrics.jsonl` and `out/tensorboard/`. A resumed run first drops what came after its checkpoint."""

    def __init__(self, out: Path, start: int):
        from torch.utils.tensorboard import SummaryWriter

        self.path = out / "metrics.jsonl"
        if self.path.exists():
            lines = [
                line for line in self.path.read_text().splitlines() if line.endswith("}")
            ]  # a kill may cut the last
            self.path.write_text("".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= start))
        self.writer = SummaryWriter(str(out / "tensorboard"), purge_step=start + 1)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.close()

    def numbers(self, kind: str, step: int, values: dict[str, float]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        for name, value in values.items():
            self.writer.add_scalar(f"{kind}/{name}", value, step)

    def text(self, name: str, value: str) -> None:
        self.writer.add_text(name, f"```\n{value}\n```")

    def imagined(self, step: int, policy: PadPolicy, ema: EMA | None, batch: Batch, rows: int = 4) -> None:
        """Imagined futures of held-out episodes as pictures: what came, and next to it what was imagined."""
        with averaged(policy, ema):
            batch = batch.select(torch.arange(min(rows, len(batch))))
            generator = torch.Generator().manual_seed(0)
            mode = policy.imagines_in if policy.spec.action else "video"  # without statistics, no action is denoised
            if not mode:
                return
            prediction = policy.predict(batch, mode=mode, generator=generator)
            for camera, latent in prediction.future_latent.items():
                if not {f"future.latent_{camera}", f"future.rgb_{camera}"} & batch.fields.keys():
                    continue
                real = _really(policy, batch, camera)
                pictures = policy.decode(torch.cat([real, latent.cpu()], 1).flatten(0, 1))
                grid = pictures.unflatten(0, (len(batch), -1)).movedim(1, 2).flatten(2, 3).flatten(0, 1)
                self.writer.add_image(f"imagined/{camera}", grid.cpu(), step, dataformats="HWC")


def _really(policy: PadPolicy, batch: Batch, camera: str) -> torch.Tensor:
    """Latents of what a camera then saw, (B, F, C, h, w) float32 on the CPU; 0 (grey) where it is absent."""
    latent, rgb = f"future.latent_{camera}", f"future.rgb_{camera}"
    if latent in batch.fields:
        return present(batch.fields[latent].float(), batch.has[latent]).cpu()
    return present(policy.encode(batch.fields[rgb]).float().cpu(), batch.has[rgb].cpu())
