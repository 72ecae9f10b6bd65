"""MLC: mining latent classes.

Yang, Zhuo, Qi, Shi, Gao: "Mining Latent Classes for Few-shot Segmentation", ICCV 2021. The episodic
baseline is the default, and the only part whose code is public: one prototype a class, matched by
cosine. Mining and rectification follow the paper's description; see docs/methods.md for the choices
that are ours.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.data import ImageLike, MaskLike, read_image, read_label_map
from fastfss.data.masks import IGNORED
from fastfss.encoders import Encoder, load_encoder
from fastfss.errors import expected
from fastfss.methods.info import MethodInfo, PublishedScore
from fastfss.methods.latent_classes import (
    LatentClasses,
    LatentDecoder,
    MiningConfig,
    mine_latent_classes,
    spherical_kmeans,
)
from fastfss.methods.prototypes import PrototypeSegmenter, cosine_scores, freeze, upsample
from fastfss.methods.rectification import Rectification, Rectifier, region_prototypes
from fastfss.methods.shots import Images
from fastfss.weights import MLC_KEYS, load_into

# The baseline's; the authors' repository has no figures of the full method.
SCORES = (
    PublishedScore("PASCAL-5i", "ResNet-50", 1, 57.9, (54.9, 66.5, 61.7, 48.3)),
    PublishedScore("PASCAL-5i", "ResNet-50", 5, 64.7, (61.6, 70.3, 70.5, 56.4)),
    PublishedScore("PASCAL-5i", "ResNet-101", 1, 60.1, (57.2, 68.5, 61.3, 53.3)),
    PublishedScore("PASCAL-5i", "ResNet-101", 5, 67.8, (64.2, 74.0, 71.5, 61.3)),
)


@dataclass(frozen=True, eq=False)
class MLCOutput:
    """What the joint training forward returns.

    Attributes:
        logits: (B, 2, H, W) of the episodes' queries.
        latent: (M, n + 1, h, w), the decoder's logits of the mined images, at feature resolution.
    """

    logits: Tensor
    latent: Tensor


class MLC(PrototypeSegmenter):
    """MLC: cosine of every query position with the support's two prototypes.

    Args:
        encoder: the backbone; published with "deep_resnet50" and "deep_resnet101".
        layers: the feature maps to match; published: layer3.
        size: see FewShotSegmenter.
        latent_classes: n, of the mining branch's decoder, for training only; None: no branch, the
            baseline.
        latent_weight: of the mining branch's loss.
        rectify: how to rectify prototypes; None: not at all, the baseline.
    """

    method = "mlc"
    info = MethodInfo(
        title="MLC",
        paper="Yang, Zhuo, Qi, Shi, Gao: Mining Latent Classes for Few-shot Segmentation",
        venue="ICCV 2021",
        arxiv="2103.15402",
        encoders=("deep_resnet50", "deep_resnet101"),
        parity="three golden cases of the baseline, the default; mining and rectification have no "
        "public code and are built after the paper's description, off by default",
        scores=SCORES,
    )
    pooling_resize = "features"
    published_keys = MLC_KEYS
    head_keys = ("decoder.", "rectifier.")

    def __init__(
        self,
        encoder: Encoder,
        layers: Sequence[str] = ("layer3",),
        size: int | None = None,
        *,
        latent_classes: int | None = None,
        latent_weight: float = 1.0,
        rectify: Rectification | None = None,
    ) -> None:
        super().__init__(encoder, layers, size)
        freeze(encoder, prefixes=())
        if latent_classes is not None and not 1 <= latent_classes < IGNORED:
            wanted = f"1 to {IGNORED - 1}, or None"
            raise expected("latent_classes", wanted, str(latent_classes))
        channels = sum(encoder.info(layer).channels for layer in layers)
        self.latent_weight = latent_weight
        self.decoder = (
            None if latent_classes is None else LatentDecoder(channels, 1 + latent_classes)
        )
        self.rectifier = None if rectify is None else Rectifier(rectify, channels)
        # A mask is as good as the encoder: the decoder serves training, the rectifier is not drawn.
        self.head_origin = "none"

    def shot_prototypes(self, maps: list[Tensor], masks: list[Tensor]) -> Tensor:
        """Prototypes (B, K, 2, C), foreground and background, of K maps and masks; rectified."""
        prototypes = super().shot_prototypes(maps, masks)
        return prototypes if self.rectifier is None else self.rectifier(prototypes)

    def scores(self, features: Tensor, foreground: Tensor, background: Tensor) -> Tensor:
        """Scores (B, 2, h, w) of features (B, C, h, w) with prototypes (B, C)."""
        return cosine_scores(features, foreground, background)

    # ---- Training

    def forward(
        self, images: Images, masks: Images, query: Tensor, mined: Tensor | None = None
    ) -> Tensor | MLCOutput:
        """An episode's logits and, with mined images, the mining branch's.

        Args:
            images: supports, as in encode_support.
            masks: support masks, as in encode_support.
            query: (B, 3, H, W).
            mined: (M, 3, H', W'), further training images, of which there are pseudo masks.

        Returns:
            The logits (B, 2, H, W), in an MLCOutput if `mined` is given.
        """
        logits = self.segment(query, self.encode_support(images, masks)).logits
        return logits if mined is None else MLCOutput(logits, self.latent_logits(mined))

    def latent_logits(self, images: Tensor) -> Tensor:
        """The mining branch: images (M, 3, H, W) to logits (M, n + 1, h, w)."""
        if self.decoder is None:
            raise expected("mined", "a model made with latent_classes=n", "one without")
        logits: Tensor = self.decoder(self.features(images))
        return logits

    @overload
    def loss(self, output: Tensor, query_mask: Tensor) -> Tensor: ...

    @overload
    def loss(
        self, output: MLCOutput, query_mask: Tensor, pseudo_masks: Tensor
    ) -> dict[str, Tensor]: ...

    def loss(
        self,
        output: Tensor | MLCOutput,
        query_mask: Tensor,
        pseudo_masks: Tensor | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """Cross-entropy, mean over the pixels that are not 255.

        Args:
            output: of forward.
            query_mask: (B, H, W) of {0, 1, 255}.
            pseudo_masks: (M, H', W') of the mined images, 0..n or 255; their logits are enlarged to
                the masks.

        Returns:
            The baseline's loss; for an MLCOutput "episode", "latent" and their weighted "total".
        """
        if isinstance(output, Tensor):
            return F.cross_entropy(output, query_mask.long(), ignore_index=IGNORED)
        if pseudo_masks is None:
            raise expected("pseudo_masks", "one mask a mined image", "None")
        height, width = pseudo_masks.shape[-2:]
        latent = upsample(output.latent, (height, width))
        episode = F.cross_entropy(output.logits, query_mask.long(), ignore_index=IGNORED)
        mined = F.cross_entropy(latent, pseudo_masks.long(), ignore_index=IGNORED)
        total = episode + self.latent_weight * mined
        return {"episode": episode, "latent": mined, "total": total}

    # ---- Mining with one's own images

    @torch.no_grad()
    def mine(
        self,
        samples: Iterable[tuple[ImageLike, MaskLike]],
        *,
        classes: Sequence[int] | None = None,
        config: MiningConfig | None = None,
    ) -> LatentClasses:
        """Find latent classes in training images; see `mine_latent_classes`.

        Args:
            samples: pairs of image and label map, of any size.
            classes: the labels that are objects; any other becomes background; None: all but 0.
            config: the options.
        """
        maps = (self._map_and_labels(*pair, f"samples[{n}]") for n, pair in enumerate(samples))
        return mine_latent_classes(maps, classes=classes, config=config)

    @torch.no_grad()
    def pseudo_mask(
        self, image: ImageLike, latent: LatentClasses, labels: MaskLike | None = None
    ) -> Tensor:
        """The dense pseudo mask of an image, which need not be annotated.

        Args:
            image: of any size.
            latent: of `mine`, with the same weights.
            labels: its label map, where it has one.

        Returns:
            (H, W) uint8: 0 the background, 1..n latent classes, 255 ignored.
        """
        pixels = read_image(image)
        size = (pixels.shape[1], pixels.shape[2])
        annotated = None
        if labels is not None:
            annotated = read_label_map(labels, size=size)[None].to(self.device)
        return latent.annotate(self.features(self.prepare(pixels)), annotated, size)[0]

    @torch.no_grad()
    def collect_regions(
        self,
        images: Iterable[ImageLike],
        latent: LatentClasses | None = None,
        *,
        regions: int = 8,
        min_positions: int = 4,
    ) -> int:
        """Fill the rectifier with regions of additional images, training or unlabelled ones.

        They stay in the model, and in its file. Collect them when training is over: they are
        features of the weights of this moment.

        Args:
            images: of any size.
            latent: regions are what each latent class covers in an image; None: the clusters of the
                image's own features.
            regions: so many clusters an image, without `latent`.
            min_positions: regions of fewer positions are left out.

        Returns:
            The number of regions.
        """
        if self.rectifier is None:
            raise expected("rectify", "a model made with rectify=Rectification()", "one without")
        found = [self.rectifier.regions[:0]]
        for number, image in enumerate(images):
            pixels = read_image(image, argument=f"images[{number}]")
            features = self.features(self.prepare(pixels))
            if latent is not None:
                labels = latent.annotate(features)
            else:
                positions = features[0].flatten(1).T
                count = min(regions, len(positions))
                labels = 1 + spherical_kmeans(positions, count)[1].view(1, *features.shape[2:])
            found.append(region_prototypes(features, labels, min_positions))
        self.rectifier.regions = torch.cat(found).to(self.rectifier.regions)
        return len(self.rectifier.regions)

    def _map_and_labels(
        self, image: ImageLike, labels: MaskLike, argument: str
    ) -> tuple[Tensor, Tensor]:
        pixels = read_image(image, argument=f"{argument} image")
        size = (pixels.shape[1], pixels.shape[2])
        annotated = read_label_map(labels, size=size, argument=f"{argument} labels")
        return self.features(self.prepare(pixels)), annotated[None].to(self.device)

    # ---- Files and copies

    def for_inference(
        self, *, dtype: torch.dtype = torch.float32, channels_last: bool = True
    ) -> MLC:
        """A copy for prediction alone, without the decoder; see FewShotSegmenter."""
        model = super().for_inference(dtype=dtype, channels_last=channels_last)
        model.decoder = None
        return model

    def fingerprinted(self) -> dict[str, Tensor]:
        """The entries of the state dict of which a Task depends: not the decoder's."""
        entries = super().fingerprinted()
        return {key: t for key, t in entries.items() if not key.startswith("decoder.")}

    def load_checkpoint(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Fill the model from a file of the baseline or of the full method.

        What the file has and the model lacks, decoder or rectifier, is left out; what the file
        lacks stays as it is. Load before an optimizer takes the parameters: they are new ones.

        Args:
            tensors: key to tensor, as read from the file.
            source: the file, for messages.

        Raises:
            CheckpointError: missing, unexpected or wrongly shaped entries; nothing is changed then.
        """
        own = self.own_keys(tensors)
        parts: dict[str, dict[str, Tensor]] = {"": {}, "decoder": {}, "rectifier": {}}
        for key, tensor in own.items():
            head, _, leaf = key.partition(".")
            if head in parts:
                parts[head][leaf] = tensor
            else:
                parts[""][key] = tensor
        # Copies, so that an error leaves the model as it was.
        encoder = load_encoder(copy.deepcopy(self.encoder), parts[""], source)
        decoder, rectifier = copy.deepcopy(self.decoder), copy.deepcopy(self.rectifier)
        if decoder is not None and parts["decoder"]:
            load_into(decoder, parts["decoder"], source=source)
        if rectifier is not None and (held := parts["rectifier"]):
            if "regions" in held:  # as many as the file has
                rows = held["regions"].shape[:1]
                rectifier.regions = rectifier.regions.new_empty(*rows, rectifier.regions.shape[1])
            load_into(rectifier, held, source=source)
        freeze(encoder, prefixes=())
        self.encoder = encoder.train(self.training)
        self.decoder, self.rectifier = decoder, rectifier
        self.weights_origin = source
