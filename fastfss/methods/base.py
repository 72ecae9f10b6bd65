"""What all methods share: the two functions, and the weights."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfss.annotation import Unsaid
from fastfss.encoders import Encoder, load_encoder
from fastfss.encoders.pointwise import use_pointwise_
from fastfss.errors import CheckpointError, expected
from fastfss.methods.features import Features
from fastfss.methods.graphed import GraphedQuery
from fastfss.methods.own_images import OwnImages
from fastfss.methods.prediction import Prediction
from fastfss.methods.shots import Images, shots_of
from fastfss.task import Task
from fastfss.weights import KeyMap, load_into, save_checkpoint

if TYPE_CHECKING:
    from typing_extensions import Self

Model = TypeVar("Model", bound="FewShotSegmenter")


class FewShotSegmenter(OwnImages):
    """A method: `encode_support` once per class, `segment` once per query.

    Attributes:
        method: the method's name in the registry.
        info: paper, published set-up and figures.
        published_keys: the names of a published checkpoint's entries, and ours.
        head_keys: prefixes of the entries of a checkpoint that are not the encoder's, in published
            files and in ours; none where the encoder is all that there is to train.
        ignored_keys: shell patterns of entries, under our names, that a checkpoint may hold and
            that are left out.
        frame: how `fit` and `predict` bring images to `size`.
        default_size: `size` where none is given.
        few_shot: whether a support may be another image than the query.
        encoder: the backbone.
        layers: the feature maps that the method reads.
        takes_hints: whether there is `segment_hinted`.
        unsaid: what pixels of the query are of which clicks on it say nothing, see
            fastfss.annotation.annotation_mask.
        cheap_update: whether `support_from` runs no stage of the encoder, so that a change of the
            masks costs little.
        grid_corners: `align_corners` of the enlargement of logits from their `logits_grid`.
        size: the pixels to which `fit` and `predict` bring images: of the longer side, or of both
            (`frame`); or height and width, to which they are stretched; None keeps them as they
            are.
        text: what makes masks of labels, of `fastfss.load_clip`; None at first. It stays on its own
            device and is no part of the weights.
    """

    published_keys: ClassVar[KeyMap]
    head_keys: ClassVar[tuple[str, ...]] = ()
    ignored_keys: ClassVar[tuple[str, ...]] = ()
    default_size: ClassVar[int | None] = None
    few_shot: ClassVar[bool] = True
    takes_hints: ClassVar[bool] = False
    unsaid: ClassVar[Unsaid] = "border"
    cheap_update: ClassVar[bool] = True
    grid_corners: ClassVar[bool] = True

    def __init__(self, encoder: Encoder, layers: Sequence[str], size: int | None = None) -> None:
        super().__init__()
        if not layers:
            raise expected("layers", "at least one name", "none")
        for layer in layers:
            encoder.info(layer)
        if size is not None and size < 1:
            raise expected("size", "a positive number of pixels or None", str(size))
        self.encoder = encoder
        self.layers = tuple(layers)
        self.size = self.default_size if size is None else size
        self.text = None
        self.weights_origin = "random"
        self.head_origin = "random" if self.head_keys else "none"
        self._fingerprint = None
        self._origin_fingerprint = None

    def encode(self, images: Tensor) -> Features:
        """What the method needs of images, whether they become supports or queries.

        Args:
            images: (B, 3, H, W), normalised as `encoder.normalization` says.

        Raises:
            ValueError: if `images` is not (B, 3, H, W).
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise expected("images", "(B, 3, H, W)", str(tuple(images.shape)))
        return Features(self.maps(images), (images.shape[2], images.shape[3]))

    @abstractmethod
    def maps(self, images: Tensor) -> Mapping[str, Tensor]:
        """The maps of `encode`: name -> (B, C, h, w)."""

    def for_clicks(self, features: Features) -> Features:
        """Features of an image that will be clicked on: with them each click costs less.

        By default as they are.

        Args:
            features: of `encode`; they serve as before.
        """
        return features

    @abstractmethod
    def support_from(self, features: Sequence[Features], masks: Images) -> Task:
        """`encode_support` of images that are encoded already.

        Args:
            features: of K shots, B images each.
            masks: (B, K, H, W), or K tensors (B, H_k, W_k), as in encode_support.
        """

    @abstractmethod
    def segment_from(
        self,
        features: Features,
        task: Task | Sequence[Task],
        output_size: tuple[int, int] | None = None,
    ) -> Prediction:
        """`segment` of images that are encoded already.

        Args:
            features: of the queries.
            task: one task, or one a way.
            output_size: height and width of the logits; the images' by default.
        """

    def segment_hinted(
        self,
        features: Features,
        task: Sequence[Task],
        hints: Sequence[Tensor],
        output_size: tuple[int, int] | None = None,
    ) -> Prediction:
        """`segment_from` with what is known of the queries themselves.

        Args:
            features: as in segment_from.
            output_size: likewise.
            task: one a way.
            hints: one a way, of `hints_of`.

        Raises:
            NotImplementedError: unless `takes_hints`.
        """
        raise NotImplementedError(f"{self.info.title} takes no hints")

    def logits_grid(self, features: Features, tasks: Sequence[Task]) -> tuple[int, int] | None:
        """The grid on which `segment_from` makes its logits before it enlarges them, or None.

        With it as `output_size`, `segment_from` returns the logits as they are; enlarged to another
        size, bilinear with `grid_corners`, they are those of that size. None where the logits are
        made in another way.

        Args:
            features: as in segment_from.
            tasks: one a way.
        """
        return None

    def grid_prediction(self, features: Features, tasks: Sequence[Task]) -> Prediction | None:
        """The prediction on the `logits_grid`, before it is enlarged; None without one."""
        grid = self.logits_grid(features, tasks)
        return None if grid is None else self.segment_from(features, tasks, grid)

    def fit_from(self, features: Sequence[Features], masks: Images) -> Task:
        """`support_from` as `fit` does it, without a trace in the model.

        Arguments are those of `support_from`.
        """
        return self.support_from(features, masks)

    def encode_support(self, images: Images, masks: Images) -> Task:
        """Turn a support set into a Task.

        Args:
            images: (B, K, 3, H, W), or K tensors (B, 3, H_k, W_k) of their own sizes; normalised
                as `encoder.normalization` says.
            masks: (B, K, H, W), or K tensors (B, H_k, W_k); 1 object, 0 background, 255 ignored.
                Their size may differ from the images'.
        """
        return self.support_from(self.encode_shots(images, masks), masks)

    def encode_shots(self, images: Images, masks: Images) -> list[Features]:
        """The features of each shot; shots of one size are encoded together.

        Args, Raises: as in encode_support.
        """
        shots, _ = shots_of(images, masks)
        groups: dict[torch.Size, list[int]] = {}
        for index, image in enumerate(shots):
            groups.setdefault(image.shape, []).append(index)
        found: dict[int, Features] = {}
        for members in groups.values():
            together = self.encode(torch.cat([shots[i] for i in members]))
            parts = {name: one.chunk(len(members)) for name, one in together.maps.items()}
            for place, index in enumerate(members):
                maps = {name: chunks[place] for name, chunks in parts.items()}
                found[index] = Features(maps, together.size)
        return [found[index] for index in range(len(shots))]

    def segment(
        self, query: Tensor, task: Task | Sequence[Task], output_size: tuple[int, int] | None = None
    ) -> Prediction:
        """Segment query images.

        Args:
            query: (B, 3, H, W), normalised as `encoder.normalization` says.
            task: one task, or one a way: each is segmented on the same encoding of the query.
            output_size: height and width of the logits; the query's by default.

        Raises:
            ValueError: if `query` is not (B, 3, H, W) or a task does not fit the model.
        """
        tasks = self.ways_of(query, task)
        return self.segment_from(self.encode(query), tasks, output_size)

    def ways_of(self, query: Tensor, task: Task | Sequence[Task]) -> list[Task]:
        """The tasks of a call of `segment`, checked against the method and the query's batch.

        Raises:
            ValueError: if `query` is not (B, 3, H, W), there is no task, or a task is of another
                method or batch.
        """
        if query.ndim != 4 or query.shape[1] != 3:
            raise expected("query", "(B, 3, H, W)", str(tuple(query.shape)))
        return self.checked_ways(task, query.shape[0])

    def checked_ways(self, task: Task | Sequence[Task], batch: int) -> list[Task]:
        """The tasks of a call of `segment_from`, checked against the method and the batch.

        Raises:
            ValueError: if there is no task, or a task is of another method or batch.
        """
        tasks = [task] if isinstance(task, Task) else list(task)
        if not tasks:
            raise expected("task", "at least one Task", "none")
        for one in tasks:
            if one.method != self.method:
                came = f"one of {one.method!r}"
                raise expected("task", f"a task of method {self.method!r}", came)
            if one.batch not in (1, batch):
                wanted = f"a task of batch 1 or {batch}, the query's"
                raise expected("task", wanted, f"one of batch {one.batch}")
        return tasks

    def features(self, images: Tensor) -> Tensor:
        """The map that the method works on: (B, 3, H, W) -> (B, C, h, w).

        Several layers are resized to the first one's grid and concatenated.
        """
        maps: dict[str, Tensor] = self.encoder(images, self.layers)
        first = maps[self.layers[0]]
        if len(self.layers) == 1:
            return first
        size = first.shape[-2:]
        resized = [
            m
            if m.shape[-2:] == size
            else F.interpolate(m, size, mode="bilinear", align_corners=True)
            for m in maps.values()
        ]
        return torch.cat(resized, dim=1)

    def for_inference(
        self: Model, *, dtype: torch.dtype = torch.float32, channels_last: bool = True
    ) -> Model:
        """A copy for prediction alone: the encoder's batch norm folded, no gradients.

        Equal to the model to about 1e-5 relative in float32.

        Args:
            dtype: torch.float32, or torch.bfloat16 where the CPU or GPU is faster with it.
            channels_last: keep weights and maps channels-last (1.1 to 1.3 times faster on CPUs).
        """
        model = copy.copy(self)
        model._modules = dict(self._modules)
        for name, part in self.named_children():
            if isinstance(part, Encoder):
                fast: nn.Module = part.fold_batch_norm(channels_last=channels_last)
            else:
                fast = copy.deepcopy(part)
                use_pointwise_(fast)
                if channels_last:
                    fast = fast.to(memory_format=torch.channels_last)
            model._modules[name] = fast.to(dtype=dtype)
            for module in fast.modules():
                if callable(arrange := getattr(module, "arrange_", None)):
                    arrange()
        model._parameters = {
            name: None if one is None else nn.Parameter(one.detach().to(dtype, copy=True))
            for name, one in self._parameters.items()
        }
        # A task of the model serves the copy and the other way round.
        model._origin_fingerprint = self.fingerprint()
        return model.requires_grad_(False).eval()

    def graphed(
        self,
        task: Task | Sequence[Task],
        shape: Sequence[int],
        output_size: tuple[int, int] | None = None,
    ) -> GraphedQuery:
        """Capture `segment` in a CUDA graph: one launch a call instead of one a kernel.

        Args:
            task: one task, or one a way.
            shape: (B, 3, H, W) of the queries.
            output_size: as in `segment`.

        Returns:
            A function of the query (B, 3, H, W).

        Raises:
            ValueError: if the model is not on an NVIDIA GPU, or `shape` or a task does not fit.
            RuntimeError: from CUDA, if the method waits for the GPU (PPNet does).
        """
        return GraphedQuery(self, task, shape, output_size)

    def save(self, path: str | Path) -> None:
        """Write the weights as safetensors; `create_model(..., weights=path)` reads them.

        An interrupted write leaves the old file as it was.

        Raises:
            OSError: if the file cannot be written.
        """
        save_checkpoint(path, self.state_dict(), self.about())

    def about(self) -> dict[str, str]:
        """What `save` writes beside the weights."""
        about = {"format": "fastfss-model-1", "method": self.method, "encoder": self.encoder.name}
        return {**about, "layers": ",".join(self.layers)}

    def own_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a published checkpoint, or of one of ours, under our names.

        Args:
            tensors: key to tensor, as read from the file.
        """
        if tensors.keys() <= self.state_dict().keys():
            return dict(tensors)
        return {self.published_keys.to_ours(key): tensor for key, tensor in tensors.items()}

    def load_checkpoint(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Fill the whole model, encoder and head, from a published checkpoint or one of ours.

        The encoder becomes what the file's is: without batch norms where they are folded, without
        stages that the file does not reach.

        Args:
            tensors: key to tensor, as read from the file.
            source: the file, for messages.

        Raises:
            CheckpointError: missing, unexpected or wrongly shaped entries; nothing is changed then.
        """
        own = self.own_keys(tensors)
        inside = {k.removeprefix("encoder."): t for k, t in own.items() if k.startswith("encoder.")}
        before = self.encoder
        # A copy, so that an error leaves the model as it was.
        encoder = load_encoder(copy.deepcopy(before), inside, source).train(before.training)
        if not any(parameter.requires_grad for parameter in before.parameters()):
            encoder.requires_grad_(False)
        for layer in self.layers:
            encoder.info(layer)
        head = {key: tensor for key, tensor in own.items() if not key.startswith("encoder.")}
        loaded = {f"encoder.{key}": tensor for key, tensor in encoder.state_dict().items()}
        self.encoder = encoder
        try:
            load_into(self, {**head, **loaded}, ignore=self.ignored_keys, source=source)
        except CheckpointError:
            self.encoder = before
            raise
        self.weights_origin = self.head_origin = source

    def train(self, mode: bool = True) -> Self:
        """Set the mode; a model that has been in training no longer counts as random."""
        if mode and not self.training:
            self.weights_origin, self.head_origin = (
                "trained" if origin == "random" else origin
                for origin in (self.weights_origin, self.head_origin)
            )
        return super().train(mode)
