"""Instructions to embeddings: the text tower of any open_clip model, frozen.

    "touch the red cube" -> ids (context,) -> transformer -> ln_final -> tokens (L, W)   what the policy attends to
                                                                     \\-> pooled (E,)     open_clip's `encode_text`

A folder written by `TextEncoder.save` holds `open_clip_config.json` and `text.safetensors`: the text tower only, its
vocabulary (most of a small tower's weights) as int8 with one scale per row, the rest as fp16.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from padpolicy.encoders.fingerprint import fingerprint
from padpolicy.shipped import shipped

WEIGHTS = "text.safetensors"
CONFIG = "open_clip_config.json"
_IMAGE_TOWER = ("visual.", "logit_scale", "logit_bias")  # parameters that no text passes through
_TABLE = "token_embedding.weight"
CACHED = 4096  # embedded instructions that are kept: of 20 tokens and width 512, 170 MB


@dataclass
class TextEmbedding:
    """B instructions, L = max_tokens."""

    tokens: Tensor  # (B, L, W) float32, the last layer's features after its norm; 0 where not real
    mask: Tensor  # (B, L) bool, True where a real token stands (start and end of text included)
    pooled: Tensor  # (B, E) float32, what open_clip's encode_text returns: projected, not normalised


class TextEncoder:
    """A frozen text tower. The same string has bitwise the same embedding, whatever it is batched with."""

    def __init__(
        self, model: nn.Module, tokenizer: Any, model_cfg: dict[str, Any], device: torch.device | str = "cpu"
    ) -> None:
        model.visual = nn.Identity()  # the picture tower is not needed again
        self.model = model.eval().requires_grad_(False).to(device)
        self.model_cfg = model_cfg
        self.device = torch.device(device)
        self._tokenize = tokenizer
        self._cache: dict[str, tuple[Tensor, Tensor]] = {}
        text = getattr(model, "text", model)
        self._norm = getattr(text, "ln_final", None)
        if self._norm is None:
            raise ValueError(
                f"the text tower {type(text).__name__} has no `ln_final`; expected open_clip's own transformer. "
                "Towers wrapped from other libraries are not supported: choose a model such as ViT-B-32."
            )
        tokens, pooled = self._one("a")
        self.width, self.pooled_width = tokens.shape[-1], pooled.shape[-1]
        more = [json.dumps(model_cfg.get("text_cfg", {}), sort_keys=True)]
        if model_cfg.get("quick_gelu"):  # else nothing: towers with the plain GELU are known by what they always were
            more.append("quick_gelu")
        self.fingerprint = fingerprint(self._text_weights(), *more)

    @classmethod
    def load(cls, name: str, device: torch.device | str = "cpu") -> TextEncoder:
        """`name` is "shipped:NAME", "local-dir:PATH" (open_clip's layout or `save`'s), "hf-hub:ORG/NAME", or
        "MODEL/PRETRAINED" with one of open_clip's tags or the path of a weights file (.safetensors, .pt).

        Raises:  ValueError for a name without weights, FileNotFoundError for a folder that is not there.
        """
        import open_clip

        if name.startswith("shipped:"):
            return _load_folder(shipped(f"data/weights/{name.removeprefix('shipped:')}"), device)
        if name.startswith("local-dir:"):
            folder = Path(name.removeprefix("local-dir:")).expanduser()
            if not (folder / CONFIG).is_file():
                raise FileNotFoundError(f"encoders.text={name!r}: expected {CONFIG} in {folder}, and it is not there.")
            if (folder / WEIGHTS).is_file():
                return _load_folder(folder, device)
            model = open_clip.create_model(name, require_pretrained=True)
            cfg = json.loads((folder / CONFIG).read_text())["model_cfg"]
            return cls(model, open_clip.get_tokenizer(name), cfg, device)
        if name.startswith("hf-hub:"):
            model = open_clip.create_model(name, require_pretrained=True)
            return cls(model, open_clip.get_tokenizer(name), open_clip.get_model_config(name) or {}, device)
        architecture, _, pretrained = name.partition("/")
        if architecture not in open_clip.list_models():
            raise ValueError(
                f"encoders.text={name!r}: open_clip knows no model {architecture!r}. Expected shipped:NAME, "
                "local-dir:PATH, hf-hub:ORG/NAME or MODEL/PRETRAINED, for example ViT-B-32/openai."
            )
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        if not pretrained or (pretrained not in tags and not Path(pretrained).is_file()):
            raise ValueError(
                f"encoders.text={name!r}: expected MODEL/PRETRAINED, where PRETRAINED is a weights file or one of "
                f"{', '.join(tags) or '(no tags for this model)'}. A tower without weights says nothing."
            )
        cfg = pretrained_config(architecture, pretrained)
        quick = cfg.get("quick_gelu", False)
        model = open_clip.create_model(architecture, pretrained=pretrained, force_quick_gelu=quick)
        return cls(model, open_clip.get_tokenizer(architecture), cfg, device)

    def encode(self, texts: Sequence[str], max_tokens: int) -> TextEmbedding:
        """Embeds instructions; those of more than `max_tokens` tokens (start, end included) are cut with a warning."""
        if max_tokens < 1:
            raise ValueError(f"max_tokens={max_tokens}: expected at least 1.")
        tokens = torch.zeros(len(texts), max_tokens, self.width, device=self.device)
        mask = torch.zeros(len(texts), max_tokens, dtype=torch.bool, device=self.device)
        pooled = torch.zeros(len(texts), self.pooled_width, device=self.device)
        for row, text in enumerate(texts):
            if text not in self._cache:
                while len(self._cache) >= CACHED:  # the oldest goes: a server is told whatever people say
                    self._cache.pop(next(iter(self._cache)), None)
                self._cache[text] = self._one(text)
            features, pooled[row] = self._cache[text]
            n = min(len(features), max_tokens)
            if n < len(features):
                warnings.warn(
                    f"the instruction {text!r} has {len(features)} tokens, the policy sees the first {max_tokens}; "
                    "shorten it or raise encoders.text_tokens before training.",
                    stacklevel=2,
                )
            tokens[row, :n], mask[row, :n] = features[:n], True
        return TextEmbedding(tokens, mask, pooled)

    def save(self, folder: Path, quantise: bool = False) -> None:
        """Writes the text tower into `folder` as fp16; "local-dir:FOLDER" loads it, with the same fingerprint.

        With `quantise` the vocabulary is int8: half the size, another fingerprint unless it was int8 already.
        """
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        weights: dict[str, Tensor] = {}
        for name, value in self._text_weights().items():
            if quantise and name.endswith(_TABLE):
                weights[f"{name}.int8"], weights[f"{name}.scale"] = quantise_rows(value)
            else:
                weights[name] = value.half().contiguous()
        save_file(weights, folder / WEIGHTS)
        picture = {
            "layers": 1,
            "width": 32,
            "head_width": 32,
            "patch_size": 32,
            "image_size": 32,
        }  # built, then dropped
        config = {"model_cfg": {**self.model_cfg, "vision_cfg": picture}, "preprocess_cfg": {}}
        (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")

    def _text_weights(self) -> dict[str, Tensor]:
        named = self.model.named_parameters()
        return {name: p.detach().cpu() for name, p in named if not name.startswith(_IMAGE_TOWER)}

    def _one(self, text: str) -> tuple[Tensor, Tensor]:
        """One string: features of its real tokens (n, W) and the pooled embedding (E,), float32.

        Strings go through alone: the last bits of a matrix product depend on the batch's size. What is cached must not
        depend on who asked first either: neither on their autocast nor on their inference mode.
        """
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            ids = self._tokenize([text]).to(self.device)
            caught: list[Tensor] = []
            hook = self._norm.register_forward_hook(lambda _module, _inputs, output: caught.append(output))
            try:
                pooled = self.model.encode_text(ids)
            finally:
                hook.remove()
            return caught[0][0, : self._length(ids[0])].float(), pooled[0].float()

    def _length(self, ids: Tensor) -> int:
        """How many of the ids are real. CLIP pads with 0, which is also "!", so its end-of-text token decides."""
        end = getattr(self._tokenize, "eot_token_id", None)
        if end is not None:
            return int((ids == end).nonzero()[0, 0]) + 1
        pad = getattr(getattr(self._tokenize, "tokenizer", None), "pad_token_id", None) or 0
        real = (ids != pad).nonzero()
        return int(real[-1, 0]) + 1 if len(real) else 1


def pretrained_config(architecture: str, pretrained: str) -> dict[str, Any]:
    """open_clip's configuration of a model, with the activation that the weights of this tag were trained with.

    Of ViT-B-32/openai open_clip builds one with plain GELU, and warns; those weights know QuickGELU. A weights file
    says nothing: for it, choose the architecture (ViT-B-32-quickgelu/PATH).
    """
    import open_clip

    cfg = dict(open_clip.get_model_config(architecture))
    if open_clip.get_pretrained_cfg(architecture, pretrained).get("quick_gelu"):
        cfg["quick_gelu"] = True
    return cfg


def quantise_rows(table: Tensor) -> tuple[Tensor, Tensor]:
    """A float table (N, W) as int8 (N, W) and one float16 scale per row (N,): at most half a step of error each."""
    # Rounded to fp16 before it is used. Quantising what `dequantise_rows` returns gives the same bytes again.
    scale = (table.abs().amax(1) / 127).clamp_min(1e-7).half()
    return (table / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8), scale


def dequantise_rows(table: Tensor, scale: Tensor) -> Tensor:
    """The float32 table of `quantise_rows`."""
    return table.float() * scale.float()[:, None]


def _load_folder(folder: Path, device: torch.device | str) -> TextEncoder:
    """A tower written by `TextEncoder.save`."""
    import open_clip
    from safetensors.torch import load_file

    stored = load_file(folder / WEIGHTS)
    weights = {name: value.float() for name, value in stored.items() if not name.endswith((".int8", ".scale"))}
    for name, value in stored.items():
        if name.endswith(".int8"):
            name = name.removesuffix(".int8")
            weights[name] = dequantise_rows(value, stored[f"{name}.scale"])
    cfg = json.loads((folder / CONFIG).read_text())["model_cfg"]
    tower = open_clip.CustomTextCLIP if cfg.get("custom_text") else open_clip.CLIP
    model = tower(**{key: value for key, value in cfg.items() if key != "custom_text"})
    found = model.load_state_dict(weights, strict=False)
    missing = [name for name in found.missing_keys if not name.startswith(_IMAGE_TOWER)]
    if missing or found.unexpected_keys:
        raise ValueError(
            f"{folder / WEIGHTS} does not fit {CONFIG}: missing {missing}, unexpected {found.unexpected_keys}. "
            "Write both again with TextEncoder.save."
        )
    return TextEncoder(model, open_clip.get_tokenizer(f"local-dir:{folder}"), cfg, device)
