"""Golden cases: one .npz each, made with the reference implementations.

A case holds its inputs and the reference's outputs, never weights: both sides draw those from the
published key names (`array_for`), so that only the seed has to be stored.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

TOLERANCE = 1e-4  # relative, of the final logits and of every intermediate

MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)[:, None, None]
STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)[:, None, None]


class Case:
    """The arrays of one case."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with np.load(path, allow_pickle=False) as arrays:
            self.arrays = {key: arrays[key] for key in arrays.files}

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def tensor(self, key: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.arrays[key]))

    def value(self, key: str, default: object = None) -> object:
        return self.arrays[key].item() if key in self.arrays else default

    def weights(self) -> dict[str, Tensor]:
        """The reference's state dict, filled from its key names.

        Entries of `constant_keys` keep what their constructor computed, so they are left out.
        """
        keys = [str(key) for key in self["keys"]]
        shapes = json.loads(str(self["shapes"]))
        if isinstance(shapes, list):
            shapes = dict(zip(keys, shapes, strict=True))
        seed = int(self["seed"])
        constant = {str(key) for key in self.arrays.get("constant_keys", ())}
        factors = json.loads(str(self["rescale"])) if "rescale" in self else []
        weights = {}
        for key in keys:
            if key in constant:
                continue
            if key.endswith("num_batches_tracked"):
                weights[key] = torch.zeros(shapes[key], dtype=torch.int64)
                continue
            weights[key] = torch.from_numpy(array_for(key, tuple(shapes[key]), seed))
            for suffix, factor in factors:
                if key.endswith(suffix):
                    weights[key] *= factor
        return weights

    def batch_suffixes(self) -> list[str]:
        """ "" for the first episode, then "_b", "_c" ... for those that follow it in the batch."""
        letters = (f"_{chr(code)}" for code in range(ord("b"), ord("z")))
        return ["", *(s for s in letters if f"query{s}" in self)]

    def query(self) -> tuple[Tensor, Tensor]:
        """Query images (B, 3, H, W), normalised, and masks (B, H, W)."""
        suffixes = self.batch_suffixes()
        images = torch.cat([normalised(self[f"query{s}"])[None] for s in suffixes])
        masks = torch.cat([self.tensor(f"query_mask{s}")[None] for s in suffixes])
        return images, masks

    def supports(self) -> tuple[list[Tensor], list[Tensor]]:
        """K support images (B, 3, H, W) and masks (B, H, W); one way."""
        images, masks = [], []
        for shot in range(int(self["shots"])):
            if f"support_shot{shot}" in self:
                image, mask = self[f"support_shot{shot}"], self[f"support_mask_shot{shot}"]
                images.append(normalised(image.reshape(-1, *image.shape[-3:])))
                masks.append(torch.from_numpy(mask.reshape(-1, *mask.shape[-2:])))
                continue
            suffixes = self.batch_suffixes()
            images.append(torch.stack([normalised(self[f"support{s}"][0, shot]) for s in suffixes]))
            masks.append(torch.stack([self.tensor(f"support_mask{s}")[0, shot] for s in suffixes]))
        return images, masks

    def episode(self) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
        """K support images (B, 3, H, W), their masks, the query and its mask; one way.

        For cases whose arrays carry the batch as a leading axis, or none.
        """
        images = normalised(self["support"])
        images = images.reshape(-1, *images.shape[-5:])[:, 0]  # (B, K, 3, H, W)
        masks = self.tensor("support_mask")
        masks = masks.reshape(-1, *masks.shape[-4:])[:, 0]
        query, query_mask = normalised(self["query"]), self.tensor("query_mask")
        return (
            list(images.unbind(1)),
            list(masks.unbind(1)),
            query.reshape(-1, *query.shape[-3:]),
            query_mask.reshape(-1, *query_mask.shape[-2:]),
        )


@dataclass
class Report:
    """What was compared in a case; the largest relative error is shown at the end of the run."""

    errors: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def compare(
        self,
        name: str,
        ours: Tensor,
        wanted: Tensor | np.ndarray,
        *,
        tolerance: float = TOLERANCE,
    ) -> None:
        """Record ||ours - wanted|| / ||wanted||; the shapes must agree."""
        wanted = torch.as_tensor(np.asarray(wanted)).double()
        ours = ours.detach().double()
        assert ours.shape == wanted.shape, f"{name}: {tuple(ours.shape)} != {tuple(wanted.shape)}"
        error = float((ours - wanted).norm() / wanted.norm().clamp_min(1e-30))
        self.errors[name] = float("inf") if error != error else error
        if not error <= tolerance:  # also for NaN
            self.failures.append(f"{name}: relative error {error:.2e} > {tolerance:g}")

    def labels(
        self,
        name: str,
        ours: Tensor,
        wanted: np.ndarray,
        margins: Tensor,
        *,
        near: float = TOLERANCE,
    ) -> None:
        """Label maps must agree wherever the margin that decides is not within rounding of zero."""
        different = ours != torch.as_tensor(wanted)
        sure = margins.abs() > near * margins.abs().max()
        count = int((different & sure).sum())
        self.errors[name] = count / different.numel()
        if count:
            self.failures.append(f"{name}: {count} of {different.numel()} labels differ")

    def compare_if_there(
        self, case: Case, key: str, ours: Tensor, *, tolerance: float = TOLERANCE
    ) -> None:
        """`compare` with the case's entry of that name; nothing where the case has none."""
        if key in case:
            self.compare(key, ours, case[key], tolerance=tolerance)

    @property
    def worst(self) -> tuple[str, float]:
        """The largest error among logits and intermediates; gradients have a bound of their own."""
        forward = {k: v for k, v in self.errors.items() if not k.startswith("grad_")}
        return max(forward.items(), key=lambda item: item[1])


def array_for(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The weights that a key stands for: float32, from the seed and the key's CRC-32 alone.

    Matrices and kernels: normal, variance 2 / fan-in. Running means: 0.1 normal. Running variances
    and vectors called "weight": uniform in [0.5, 1.5). All others: 0.05 normal.
    """
    generator = np.random.Generator(np.random.PCG64([seed, zlib.crc32(key.encode())]))
    last = key.rpartition(".")[2]
    if last == "running_mean":
        drawn = 0.1 * generator.standard_normal(shape)
    elif last == "running_var" or (last == "weight" and len(shape) < 2):
        drawn = 0.5 + generator.random(shape)
    elif len(shape) < 2:
        drawn = 0.05 * generator.standard_normal(shape)
    else:
        drawn = generator.standard_normal(shape) * np.sqrt(2.0 / np.prod(shape[1:]))
    return np.asarray(drawn, dtype=np.float32)


def regenerated(case: Case) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """`Case.episode` for a case that stores the checksums of its inputs instead of the inputs."""
    drawn = drawn_episode(int(case["episode_seed"]), int(case["size"]), int(case["shots"]))
    for key, array in drawn.items():
        assert zlib.crc32(np.ascontiguousarray(array).tobytes()) == int(case[f"{key}_crc32"]), key
    return (
        [normalised(image)[None] for image in drawn["support"][0]],
        [torch.from_numpy(mask)[None] for mask in drawn["support_mask"][0]],
        normalised(drawn["query"])[None],
        torch.from_numpy(drawn["query_mask"])[None],
    )


def drawn_episode(seed: int, size: int, shots: int) -> dict[str, np.ndarray]:
    """The synthetic one-way episode of a seed: smooth textures, an ellipse in each image.

    Every draw, and its order, is part of the cases' format.
    """
    generator = np.random.Generator(np.random.PCG64([seed, 7]))
    y, x = np.mgrid[0:size, 0:size].astype(np.float64) / size

    def texture() -> np.ndarray:
        image = np.zeros((3, size, size))
        for channel in image:
            for _ in range(6):
                fy, fx = generator.uniform(1, 14), generator.uniform(1, 14)
                phase = generator.uniform(0, 2 * np.pi)
                weight = generator.uniform(0.2, 1.0)
                channel += weight * np.sin(2 * np.pi * (fy * y + fx * x) + phase)
        return (image - image.min()) / (image.max() - image.min())

    def ellipse() -> np.ndarray:
        cy, cx = generator.uniform(0.3, 0.7, 2)
        ry, rx = generator.uniform(0.12, 0.28, 2)
        return ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1.0

    own = texture()

    def composed() -> tuple[np.ndarray, np.ndarray]:
        mask = ellipse()
        image = np.where(mask, 0.7 * own + 0.3 * texture(), texture())
        return (image * 255).astype(np.uint8), mask.astype(np.uint8)

    pairs = [composed() for _ in range(shots)]
    query, query_mask = composed()
    return {
        "support": np.stack([image for image, _ in pairs])[None],
        "support_mask": np.stack([mask for _, mask in pairs])[None],
        "query": query,
        "query_mask": query_mask,
    }


def normalised(images: np.ndarray) -> Tensor:
    """uint8 (..., 3, H, W) -> float32 with ImageNet's mean and standard deviation."""
    return torch.from_numpy((images.astype(np.float32) / np.float32(255) - MEAN) / STD)


Runner = Callable[[Case, Report], None]


def cases(folder: Path) -> Iterator[Path]:
    """The cases of a folder, by name."""
    yield from sorted(folder.glob("*.npz"))
