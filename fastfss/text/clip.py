"""CLIP's image and text towers, as far as activation maps need them.

Radford et al.: "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fastfss.encoders.pointwise import use_pointwise_
from fastfss.errors import CheckpointError, import_extra
from fastfss.text.tokens import tokenize
from fastfss.weights import load_into, read_checkpoint

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
# In OpenAI's file beside the weights.
_FACTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
_PROBE = "visual.attnpool.positional_embedding"


class ClipTower(nn.Module):
    """A CLIP whose image tower is a ResNet: its features before the attention pooling, and text's.

    Args:
        model: open_clip's, with a ModifiedResNet; kept in evaluation mode without gradients.

    Attributes:
        size: both sides of the images that it takes.
    """

    model: Any  # open_clip has no types

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.float().eval().requires_grad_(False)
        places = self.model.visual.attnpool.positional_embedding.shape[0] - 1
        self.grid = round(places**0.5)
        self.size = 32 * self.grid

    def train(self, mode: bool = True) -> ClipTower:
        """Stays in evaluation mode."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.model.logit_scale.device
        return device

    def activations(self, images: Tensor) -> Tensor:
        """What the last stage makes of prepared images: (B, 3, S, S) -> (B, C, S / 32, S / 32)."""
        visual = self.model.visual
        maps = visual.stem(images)
        for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            maps = stage(maps)
        found: Tensor = maps
        return found

    def pool(self, activations: Tensor) -> Tensor:
        """The image features (B, D) of `activations`, by attention of their mean to all places.

            x = [mean, places] + positions,  a_h = softmax(q_h . k_h / 8),
            k_h = K_h x  so that  q_h . k_h = (K_h' q_h) . x + q_h . b,
            v_h = V_h x  so that  a_h v_h = V_h (a_h x) + b.

        Only the mean asks, so the products with K and V are made once for it instead of for every
        place; q_h . b is the same for all places and falls out of the softmax. A twelfth of the
        operations, forwards and backwards.
        """
        part = self.model.visual.attnpool
        attention, x = self.attention(activations)
        values = part.v_proj.weight.unflatten(0, (part.num_heads, -1))
        pooled = torch.einsum("bhC,hcC->bhc", attention @ x, values).flatten(1)
        features: Tensor = part.c_proj(pooled + part.v_proj.bias)
        return features

    def attention(self, activations: Tensor) -> tuple[Tensor, Tensor]:
        """The weights (B, heads, places + 1) of `pool`, and the x (B, places + 1, C) they weigh."""
        part = self.model.visual.attnpool
        places = activations.flatten(2).transpose(1, 2)
        x = torch.cat([places.mean(dim=1, keepdim=True), places], dim=1)
        x = x + part.positional_embedding
        q = part.q_proj(x[:, 0]).unflatten(1, (part.num_heads, -1))  # (B, h, c)
        keys = part.k_proj.weight.unflatten(0, (part.num_heads, -1))  # (h, c, C)
        asked = torch.einsum("bhc,hcC->bhC", q * q.shape[-1] ** -0.5, keys)
        return (asked @ x.transpose(1, 2)).softmax(dim=-1), x

    def image_features(self, images: Tensor) -> Tensor:
        """Prepared images (B, 3, S, S) -> (B, D), not normalised."""
        return self.pool(self.activations(images))

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """The texts' features (N, D), not normalised.

        Errors are those of `fastfss.text.tokenize`.
        """
        rows = tokenize(texts).to(self.device)
        # A class list of thousands would need gigabytes at once.
        parts = [self.model.encode_text(part) for part in rows.split(256)]
        return torch.cat(parts)


def load_tower(path: str | Path, device: torch.device | str = "cpu") -> ClipTower:
    """Read a CLIP with a ResNet as image tower (RN50, RN101, RN50x4, ...), in float32.

    Args:
        path: OpenAI's file (`RN50.pt`, a TorchScript archive), a state dict of its names by
            `torch.save`, or safetensors. No code in the file is run: archives are read by
            torch.jit, which makes no Python objects, all others as `fastfss.weights` does.
        device: where the weights go.

    Raises:
        CheckpointError: a file that cannot be read or is no such CLIP.
        MissingExtraError: open_clip is not installed.
    """
    path = Path(path)
    tensors = _archived(path) if _is_archive(path) else read_checkpoint(path)
    return tower_of(tensors, str(path)).to(device)


def tower_of(tensors: Mapping[str, Tensor], source: str = "the checkpoint") -> ClipTower:
    """A tower of a state dict by the published names; its shapes say how large it is.

    Args:
        tensors: key to tensor, of any floating-point dtype.
        source: what messages call it.

    Errors are those of `load_tower`.
    """
    library = import_extra("open_clip.model", extra="text", purpose="a CLIP tower")
    own = {key: tensor for key, tensor in tensors.items() if key not in _FACTS}
    if _PROBE not in own:
        wanted = "a CLIP whose image tower is a ResNet, as RN50.pt"
        raise CheckpointError(f"{source}: expected {wanted}; it has no entry {_PROBE!r}")
    try:
        stages = [_blocks(own, f"visual.layer{number}.") for number in (1, 2, 3, 4)]
        vision = library.CLIPVisionCfg(
            layers=tuple(stages),
            width=own["visual.layer1.0.conv1.weight"].shape[0],
            patch_size=None,
            image_size=32 * round((own[_PROBE].shape[0] - 1) ** 0.5),
        )
        text = library.CLIPTextCfg(
            context_length=own["positional_embedding"].shape[0],
            vocab_size=own["token_embedding.weight"].shape[0],
            width=own["ln_final.weight"].shape[0],
            heads=own["ln_final.weight"].shape[0] // 64,
            layers=_blocks(own, "transformer.resblocks."),
        )
        dimensions = own["text_projection"].shape[1]
    except KeyError as error:
        raise CheckpointError(f"{source}: no entry {error}; expected those of RN50.pt") from None
    # OpenAI's text towers have QuickGELU, which their state dicts do not say.
    model = library.CLIP(dimensions, vision_cfg=vision, text_cfg=text, quick_gelu=True)
    load_into(model, own, source=source)
    use_pointwise_(model)
    return ClipTower(model)


def centre_square(image: Tensor, size: int) -> Tensor:
    """What CLIP takes of an image, as published: bicubic, the centre square.

    Args:
        image: uint8 (3, H, W).
        size: both sides of what it takes.

    Returns:
        float32 (3, size, size), normalised, on the CPU.
    """
    picture = _picture(image)
    short = min(picture.size)
    width, height = (size * side // short for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return normalised(picture.crop((left, top, left + size, top + size)))


def whole_square(image: Tensor, size: int) -> Tensor:
    """`centre_square`, but all of the image is brought to the square."""
    return normalised(_picture(image).resize((size, size), Image.Resampling.BICUBIC))


def normalised(picture: Image.Image) -> Tensor:
    """An RGB picture as CLIP takes it: float32 (3, H, W)."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def _picture(image: Tensor) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()))


def _blocks(tensors: Mapping[str, Tensor], prefix: str) -> int:
    return len({k[len(prefix) :].partition(".")[0] for k in tensors if k.startswith(prefix)})


def _is_archive(path: Path) -> bool:
    """Whether a file is a TorchScript archive: those keep their constants beside the data."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _archived(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch.jit's end; RN50.pt stays
            module = torch.jit.load(str(path), map_location="cpu")
        return dict(module.state_dict())
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0][:160]
        raise CheckpointError(f"{path}: truncated or damaged ({reason})") from error
