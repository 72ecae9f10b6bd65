"""What a training run is made of: a recipe, checked before any long work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fastfss.data.resizing import MaskResize
from fastfss.errors import expected

SetKind = Literal["pascal", "coco", "fss1000", "folder"]
Folds = Literal["contiguous", "interleaved", "parts", "random", "none"]
SamplerName = Literal[
    "query", "pairs", "images", "class", "balanced", "equal", "single", "interactive"
]
Pixels = Literal["background", "ignored"]
LabelMaps = Literal["none", "ids", "base"]
TransformName = Literal["square", "crop", "pfenet", "native"]
Points = Literal["dense", "random"] | int
FewPoints = Literal["dense"] | int
OptimiserName = Literal["sgd", "adam", "adamw", "rmsprop"]
ScheduleName = Literal["constant", "step", "poly", "cosine"]
Precision = Literal["fp32", "bf16", "fp16"]
CacheKind = Literal["off", "fp32", "fp16", "bf16"]
Option = str | int | float | bool | tuple[str | int | float, ...]


def at_least(key: str, value: int, low: int) -> None:
    """ValueError, naming the key, for a value below `low`."""
    if value < low:
        raise expected(key, f"at least {low}", str(value))


def not_negative(key: str, value: float) -> None:
    """ValueError, naming the key, for a negative value or NaN."""
    if not value >= 0:
        raise expected(key, "a number >= 0", str(value))


def share(key: str, value: float) -> None:
    """ValueError, naming the key, for a value outside of 0 <= x < 1."""
    if not 0 <= value < 1:
        raise expected(key, "0 <= x < 1", str(value))


@dataclass(frozen=True)
class ModelConfig:
    """[model]: what is trained.

    Attributes:
        method: one of list_models().
        encoder: one of list_encoders(); the method's first published one by default.
        weights: what training starts from: "imagenet" (a download), "random", or a file of the
            encoder or of a whole model. Empty: the recipe leaves it to the user, who must say.
        layers: the encoder's maps; the published ones by default.
        size: pixels to which validation brings images; the method's own by default.
        options: the method's own.
    """

    method: str
    encoder: str = ""
    weights: str = ""
    layers: tuple[str, ...] = ()
    size: int | None = None
    options: Mapping[str, Option] = field(default_factory=dict)


@dataclass(frozen=True)
class DataConfig:
    """[data]: which images, and how episodes are drawn from them; see docs/training.md.

    Attributes:
        set, root, part: as open_set takes them; `part` is for training, `validation_part` for
            validation.
        options: the set's own, as open_set takes them.
        folds: how classes are held out: "contiguous" or "interleaved" blocks of four folds,
            "parts" (the classes of `validation_part` are others than those of `part`), "random"
            (`splits` parts, drawn with `split_seed`), or "none": all are learned, and validation
            measures them on the `reserved` images.
        fold: which of them is held out.
        reserved: the share of the images that is kept for validation, for sets without parts.
        sampler: how episodes are drawn; see fastfss.training.samplers.
        shots, ways: of an episode.
        minimum: pixels of its class that an image needs to stand in the class's list.
        minimum_share: the same as a share of the image, as DENet's framework has it.
        query_minimum: pixels that a query needs of its class; with fewer than `minimum`, images
            serve as queries that are no supports.
        skip_rare: whether classes with too few images for an episode are left out; otherwise they
            are an error.
        episodes: how many the samplers "balanced" and "single" draw before they begin anew.
        void: what mask pixels of 255 are.
        held_out: what pixels of held-out classes are in label maps or, where there are none, in a
            query's mask.
        labels: whether episodes carry label maps: with class "ids" (DENet, AMP), or of the "base"
            classes, counted from 1 (PPNet's semantic branch).
        points: what is annotated of a support: all of it, so many points of each value, or, with
            "random", 0 to 99 of them (guided networks).
        activations: the folder of activation maps of labels that IMR-HSNet trains on.
    """

    set: SetKind
    root: str = ""
    part: str = "train"
    validation_part: str = "val"
    options: Mapping[str, Option] = field(default_factory=dict)
    folds: Folds = "contiguous"
    fold: int = 0
    splits: int = 4
    split_seed: int = 0
    reserved: float = 0.0
    sampler: SamplerName = "query"
    shots: int = 1
    ways: int = 1
    minimum: int = 1
    minimum_share: float = 0.0
    query_minimum: int = 1
    skip_rare: bool = False
    episodes: int = 15000
    void: Pixels = "ignored"
    held_out: Pixels = "background"
    labels: LabelMaps = "none"
    points: Points = "dense"
    activations: str = ""

    def __post_init__(self) -> None:
        for key in ("shots", "ways", "minimum", "query_minimum", "episodes", "splits"):
            at_least(f"data.{key}", getattr(self, key), 1)
        if isinstance(self.points, int):
            at_least("data.points", self.points, 1)
        count = self.splits if self.folds == "random" else 4
        if not 0 <= self.fold < count:
            raise expected("data.fold", f"0 to {count - 1}", str(self.fold))
        share("data.reserved", self.reserved)
        share("data.minimum_share", self.minimum_share)
        if self.query_minimum > self.minimum:
            raise expected(
                "data.query_minimum",
                f"at most data.minimum, {self.minimum}",
                str(self.query_minimum),
            )
        if self.ways > 1 and self.sampler != "class":
            raise expected("data.sampler", f'"class" for {self.ways} ways', repr(self.sampler))


@dataclass(frozen=True)
class TransformConfig:
    """[transform]: what becomes of the images; each image of an episode is drawn for itself.

    Attributes:
        kind: "square": both sides to `size`, aspect lost (HSNet, PANet, DENet); "crop": cut at
            random, no scaling (SSP); "pfenet": scale, rotate, blur, cut; "native": as they are, one
            episode at a time (guided networks).
        size: pixels of both sides.
        flip: probability of mirroring left and right.
        mask_resize: how "square" shrinks masks: nearest as "torch" has it (HSNet) or as "pillow".
        scale, rotate, blur: of "pfenet": factors between which to scale, degrees either way, and
            the probability of rotating and of blurring.
    """

    kind: TransformName = "square"
    size: int = 400
    flip: float = 0.0
    mask_resize: MaskResize = "pillow"
    scale: tuple[float, float] = (0.9, 1.1)
    rotate: float = 10.0
    blur: float = 0.5

    def __post_init__(self) -> None:
        at_least("transform.size", self.size, 8)
        for key in ("flip", "blur"):
            if not 0 <= getattr(self, key) <= 1:
                raise expected(f"transform.{key}", "0 to 1", str(getattr(self, key)))
        low, high = self.scale
        if not 0 < low <= high:
            raise expected("transform.scale", "0 < low <= high", f"{low}, {high}")
        if not 0 <= self.rotate <= 180:
            raise expected("transform.rotate", "0 to 180 degrees", str(self.rotate))


@dataclass(frozen=True)
class GroupConfig:
    """[[optimiser.groups]]: parameters that are treated otherwise; the first that fits counts.

    Attributes:
        pattern: a shell pattern of parameter names, for example "aspp.*.bias".
        lr: factor on the learning rate; 0 leaves the parameters as they are.
        weight_decay: instead of the optimiser's.
    """

    pattern: str
    lr: float = 1.0
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        not_negative("optimiser.groups.lr", self.lr)
        if self.weight_decay is not None:
            not_negative("optimiser.groups.weight_decay", self.weight_decay)


@dataclass(frozen=True)
class OptimiserConfig:
    """[optimiser].

    Attributes:
        name, lr, momentum, nesterov, betas, weight_decay: as in torch.optim; `momentum` is of sgd
            and rmsprop, `betas` of adam and adamw.
        groups: exceptions.
        clip: the largest norm of the gradient; 0: any.
        repeat_every: every so many steps one further step with the same gradients, as DENet's
            published loop does where an epoch begins; 0: never.
    """

    name: OptimiserName = "sgd"
    lr: float = 1e-3
    momentum: float = 0.9
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    groups: tuple[GroupConfig, ...] = ()
    clip: float = 0.0
    repeat_every: int = 0

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise expected("optimiser.lr", "a positive number", str(self.lr))
        share("optimiser.momentum", self.momentum)
        for beta in self.betas:
            share("optimiser.betas", beta)
        for key in ("weight_decay", "clip", "repeat_every"):
            not_negative(f"optimiser.{key}", getattr(self, key))
        if self.nesterov and (self.name != "sgd" or not self.momentum):
            raise expected("optimiser.nesterov", "sgd with momentum", self.name)


@dataclass(frozen=True)
class ScheduleConfig:
    """[schedule]: the learning rate's factor at each step.

    Attributes:
        kind: "constant"; "step": times `factor` after each of `at`; "poly": (1 - t/T)^power;
            "cosine": (1 + cos(pi t/T)) / 2.
        at: shares of all steps, if below 1, or numbers of steps.
        factor, power: of "step" and "poly".
        warmup: steps over which the rate first rises linearly, from `warmup_from` times itself.
    """

    kind: ScheduleName = "constant"
    at: tuple[float, ...] = ()
    factor: float = 0.1
    power: float = 0.9
    warmup: int = 0
    warmup_from: float = 0.1

    def __post_init__(self) -> None:
        if self.kind == "step" and not self.at:
            raise expected("schedule.at", "at least one step for a schedule of steps", "none")
        if any(mark <= 0 for mark in self.at) or list(self.at) != sorted(set(self.at)):
            raise expected("schedule.at", "positive numbers, ascending", str(list(self.at)))
        if not 0 < self.factor <= 1:
            raise expected("schedule.factor", "above 0 and at most 1", str(self.factor))
        if not self.power > 0:
            raise expected("schedule.power", "a positive number", str(self.power))
        not_negative("schedule.warmup", self.warmup)
        share("schedule.warmup_from", self.warmup_from)


@dataclass(frozen=True)
class RunConfig:
    """[run].

    Attributes:
        steps: of the optimiser.
        epochs: instead of `steps`: passes over the sampler's list.
        batch: episodes a step, over all processes and accumulated parts: the effective batch.
        accumulate: parts in which a process works through its share, one after the other.
        precision: of the forward and backward; weights stay in float32.
        ema: the decay of a moving average of the weights, which is then validated and saved; 0: no.
        compile: whether to run the step through torch.compile.
        seed: of everything that is drawn.
    """

    steps: int = 0
    epochs: float = 0.0
    batch: int = 4
    accumulate: int = 1
    precision: Precision = "fp32"
    ema: float = 0.0
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        at_least("run.batch", self.batch, 1)
        at_least("run.accumulate", self.accumulate, 1)
        share("run.ema", self.ema)
        if (self.steps > 0) == (self.epochs > 0) or min(self.steps, self.epochs) < 0:
            came = f"run.steps = {self.steps}, run.epochs = {self.epochs}"
            raise expected("run.steps", "a positive number of either steps or epochs", came)
        if self.batch % self.accumulate:
            wanted = f"a multiple of run.accumulate, {self.accumulate}"
            raise expected("run.batch", wanted, str(self.batch))


@dataclass(frozen=True)
class ValidationConfig:
    """[validation]: mIoU of the held-out classes while training.

    Attributes:
        every: steps; 0: never.
        episodes, shots, seed: how many, of how many shots, drawn with what.
        minimum: pixels of its class that an image needs.
        points: what is annotated of a support: all of it, or so many points of each value.
        protocol: a published one, by its name in fastfss.protocols, instead of the quick figure;
            `minimum`, `points` and `seed` are then the protocol's.
        select: whether the best weights are kept. The published protocols choose them on the test
            classes, and so does this where `validation_part` and fold are those of the test.
    """

    every: int = 0
    episodes: int = 1000
    shots: int = 1
    seed: int = 0
    minimum: int = 2048
    points: FewPoints = "dense"
    protocol: str = ""
    select: bool = True

    def __post_init__(self) -> None:
        not_negative("validation.every", self.every)
        for key in ("episodes", "shots", "minimum"):
            at_least(f"validation.{key}", getattr(self, key), 1)
        if isinstance(self.points, int) and not 1 <= self.points <= self.minimum:
            wanted = f'"dense", or 1 to validation.minimum, {self.minimum}'
            raise expected("validation.points", wanted, str(self.points))


@dataclass(frozen=True)
class CheckpointConfig:
    """[checkpoints]: every so many steps, of which the newest `keep` stay."""

    every: int = 500
    keep: int = 2

    def __post_init__(self) -> None:
        at_least("checkpoints.every", self.every, 1)
        at_least("checkpoints.keep", self.keep, 1)


@dataclass(frozen=True)
class LogConfig:
    """[log]: a line every so many steps; TensorBoard beside it; loader processes."""

    every: int = 10
    tensorboard: bool = False
    workers: int = 4

    def __post_init__(self) -> None:
        at_least("log.every", self.every, 1)
        not_negative("log.workers", self.workers)


@dataclass(frozen=True)
class CacheConfig:
    """[cache]: what is computed once.

    Attributes:
        images_mib: memory for images and masks that are decoded already; see
            fastfss.data.loading.CachedImages.
        maps: "off", or the dtype in which maps of a frozen encoder are kept; see
            fastfss.training.FeatureCache.
        folder: where maps are kept; beside the run by default.
        limit_gib: what maps may take of the disk.
    """

    images_mib: int = 0
    maps: CacheKind = "off"
    folder: str = ""
    limit_gib: float = 20.0

    def __post_init__(self) -> None:
        not_negative("cache.limit_gib", self.limit_gib)
        not_negative("cache.images_mib", self.images_mib)


@dataclass(frozen=True)
class Recipe:
    """A training run; see the sections.

    Attributes:
        about: one line on what it is.
    """

    about: str
    model: ModelConfig
    data: DataConfig
    transform: TransformConfig = TransformConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    run: RunConfig = RunConfig(steps=1000)
    validation: ValidationConfig = ValidationConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    cache: CacheConfig = CacheConfig()

    def __post_init__(self) -> None:
        if self.cache.maps != "off" and self.transform.kind != "square":
            wanted = '"off" where images are cut at random, since each map would serve once'
            raise expected("cache.maps", wanted, repr(self.cache.maps))
        alone = self.run.batch == self.run.accumulate and self.data.shots == 1
        if self.transform.kind == "native" and not alone:
            wanted = "run.accumulate, and one shot, so that no part has images of two sizes"
            raise expected("run.batch", wanted, str(self.run.batch))
        if self.optimiser.repeat_every and self.run.precision == "fp16":
            wanted = "0 with fp16, whose gradients may overflow"
            raise expected("optimiser.repeat_every", wanted, str(self.optimiser.repeat_every))
        data = self.data
        measured = data.folds != "none" or data.reserved > 0 or data.set != "folder"
        if self.validation.every and not measured:
            wanted = (
                'classes or images to hold out (data.folds = "random", data.reserved = 0.25), or '
                "validation.every = 0"
            )
            raise expected("validation.every", wanted, str(self.validation.every))
