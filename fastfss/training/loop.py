"""The training loop."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from fastfss.atomic import check_writable, write_text_atomically
from fastfss.data.loading import CachedImages
from fastfss.data.sets import MaskSet
from fastfss.errors import expected
from fastfss.training.checkpoints import (
    FORMAT,
    Checkpoints,
    random_state,
    read_training_state,
    seed_everything,
    set_random_state,
)
from fastfss.training.data import EpisodeNumbers, prepare_data
from fastfss.training.ema import MovingAverage
from fastfss.training.episodes import Batch, EpisodeDataset, joined
from fastfss.training.feature_cache import CachedEncoder, FeatureCache, build_cache, uncached
from fastfss.training.logs import Log, Progress
from fastfss.training.models import build_model
from fastfss.training.optimisers import make_optimiser, rate_factor, set_rate
from fastfss.training.processes import Processes, processes
from fastfss.training.recipe import Recipe
from fastfss.training.recipe_files import deciding, recipe_digest
from fastfss.training.record import run_record, summary
from fastfss.training.steps import TrainingStep, check_step
from fastfss.training.validation import validate

_CACHE_REPORT = 200  # images
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TrainingResult:
    """What came out of a run.

    Attributes:
        weights: the file of the last weights (averaged, where the recipe averages).
        best: the file of the best validated ones, if any were validated and selected.
        steps: that were made, those before a resume included.
        miou: (step, mIoU in percent) of every validation.
    """

    weights: Path
    best: Path | None
    steps: int
    miou: tuple[tuple[int, float], ...]


def train(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    device: str = "auto",
    progress: Progress = "auto",
    images: MaskSet | None = None,
    validation: MaskSet | None = None,
) -> TrainingResult:
    """Train a method as a recipe says; under torchrun, together with the other processes.

    Writes into `out`: model.safetensors and, of the best validation, best.safetensors, which
    `create_model(weights=...)` reads; run.json, what was run; log.jsonl; checkpoints/.

    Args:
        recipe: see load_recipe.
        out: the run's folder; made if need be.
        resume: go on from the newest checkpoint in it, or begin if there is none.
        device: "auto", "cpu" or "cuda".
        progress: "auto", "bar", "lines" or "off".
        images: a set that is open already, instead of the one that the recipe names.
        validation: likewise.

    Raises:
        FileExistsError: `out` holds a run and `resume` is not set.
        ValueError: a recipe that cannot be run with this data, or a checkpoint of another recipe.
        FloatingPointError: the loss is not finite any more.
    """
    with processes(device) as group:
        run = _Run(recipe, out, group, images, validation, resume)
        log = run.open_log(progress)
        try:
            run.describe(log)
            return run.train(log)
        finally:
            log.close()


@dataclass
class _State:
    """How far a run has come."""

    step: int = 0
    best: float = float("-inf")
    miou: list[list[float]] = field(default_factory=list)


class _Run:
    """One process of a run: what it is made of, and the loop."""

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        group: Processes,
        images: MaskSet | None,
        validation: MaskSet | None,
        resume: bool,
    ) -> None:
        check_step(recipe)
        shared = recipe.run.accumulate * group.count
        if recipe.run.batch % shared:
            wanted = f"a multiple of {shared}, run.accumulate x {group.count} processes"
            raise expected("run.batch", wanted, str(recipe.run.batch))
        self.recipe, self.out, self.group = recipe, out, group
        self.checkpoints = Checkpoints(out / "checkpoints", recipe.checkpoints.keep)
        if not resume and (self.checkpoints.newest() or (out / "model.safetensors").exists()):
            raise FileExistsError(f"out: {out} holds a run; --resume goes on with it")
        if group.first:
            out.mkdir(parents=True, exist_ok=True)
            check_writable(out, "out")
        self.data = prepare_data(recipe, images, validation)
        run = recipe.run
        self.steps = run.steps or max(1, round(run.epochs * self.data.sampler.length / run.batch))

        seed_everything(run.seed)  # the head's first weights
        self.model = build_model(recipe).to(group.device)
        self.optimiser = make_optimiser(self.model, recipe.optimiser)
        self.average = MovingAverage(self.model, run.ema) if run.ema else None
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=run.precision == "fp16")
        self.state = _State()
        newest = self.checkpoints.newest() if resume else None
        self.random: dict[str, Any] | None = None
        self.sums: dict[str, Tensor] = {}  # of the losses since the last row of the log
        if newest is not None:
            self._restore(read_training_state(newest, recipe, self.data.sampler.digest))
        self.cache: FeatureCache | None = None

    # ---- The loop

    def train(self, log: Log) -> TrainingResult:
        """From the state's step to the end."""
        recipe, state = self.recipe, self.state
        if recipe.cache.maps != "off":
            self._open_cache(log)
        stepper = self._stepper()
        batches = iter(self._loader())
        self.model.train()
        if self.random is not None:
            set_random_state(self.random, self.group.device)
        else:
            # Each process draws its own dropout. As many as before go on where they were; others
            # can only begin anew.
            seed_everything(recipe.run.seed, self.group.rank, state.step)
        seconds, episodes = 0.0, 0
        while state.step < self.steps:
            set_rate(self.optimiser, rate_factor(recipe.schedule, state.step, self.steps))
            since = time.perf_counter()
            norm = self._step(stepper, batches)
            state.step += 1
            episodes += recipe.run.batch
            logged = state.step % recipe.log.every == 0 or state.step == self.steps
            if logged:  # a GPU is waited for
                self.sums = {name: value.cpu() for name, value in self.sums.items()}
            seconds += time.perf_counter() - since  # without validation and checkpoints
            if logged:
                self._log_losses(log, norm, episodes / seconds)
                seconds, episodes, self.sums = 0.0, 0, {}
            every = recipe.validation.every
            if every and (state.step % every == 0 or state.step == self.steps):
                self._validate(log)
            if state.step % recipe.checkpoints.every == 0 or state.step == self.steps:
                self._save_checkpoint()
        weights, best = self.out / "model.safetensors", self.out / "best.safetensors"
        self._save_model(weights)
        self.group.wait()
        return TrainingResult(
            weights,
            best if best.is_file() else None,
            state.step,
            tuple((int(step), miou) for step, miou in state.miou),
        )

    def _step(self, stepper: nn.Module, batches: Iterator[Batch]) -> Tensor | None:
        """One step of the optimiser; adds to `sums`; the gradient's norm where it is clipped."""
        config, device = self.recipe.run, self.group.device
        precision = _DTYPES.get(config.precision)
        self.optimiser.zero_grad(set_to_none=True)
        for part in range(config.accumulate):
            batch = next(batches).to(device)
            with self._unsynchronised(stepper, last=part == config.accumulate - 1):
                with torch.autocast(device.type, precision, enabled=precision is not None):
                    losses = stepper(batch)
                self.scaler.scale(losses["total"] / config.accumulate).backward()
            for name, value in losses.items():
                share = value.detach().float() / config.accumulate
                self.sums[name] = self.sums[name] + share if name in self.sums else share
        norm = None
        if self.recipe.optimiser.clip:
            self.scaler.unscale_(self.optimiser)
            trained = [p for g in self.optimiser.param_groups for p in g["params"]]
            norm = nn.utils.clip_grad_norm_(trained, self.recipe.optimiser.clip)
        self.scaler.step(self.optimiser)
        repeat = self.recipe.optimiser.repeat_every
        if repeat and (self.state.step + 1) % repeat == 0:
            self.optimiser.step()
        self.scaler.update()
        if self.average is not None:
            self.average.update()
        return norm

    @staticmethod
    def _unsynchronised(stepper: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
        if isinstance(stepper, DistributedDataParallel) and not last:
            return stepper.no_sync()
        return nullcontext()

    def _stepper(self) -> nn.Module:
        step: nn.Module = TrainingStep(
            self.model, self.recipe.transform.size, on_query=self.data.sampler.on_query
        )
        if self.recipe.run.compile:
            step.compile()
        if self.group.count == 1:
            return step
        # Unused: an encoder's maps that the method does not read, prototypes of empty masks.
        return DistributedDataParallel(step, find_unused_parameters=True)

    def _loader(self) -> DataLoader[Batch]:
        recipe, group, images = self.recipe, self.group, self.data.images
        if recipe.cache.images_mib:
            size = recipe.transform.size if recipe.transform.kind == "square" else None
            images = CachedImages(
                images,
                size,
                memory_mib=recipe.cache.images_mib,
                mask_resize=recipe.transform.mask_resize,
            )
        dataset = EpisodeDataset(
            images,
            self.data.split,
            self.data.sampler,
            recipe.data,
            recipe.transform,
            self.cache,
            self.data.activations,
        )
        numbers = EpisodeNumbers(recipe, group.rank, group.count, self.state.step, self.steps)
        return DataLoader(
            dataset,
            batch_sampler=numbers,
            collate_fn=joined,
            num_workers=recipe.log.workers,
            # Its workers' seeds would otherwise come from the generator that dropout draws from.
            generator=torch.Generator(),
            pin_memory=group.device.type == "cuda",
        )

    # ---- Beside the loop

    def _validate(self, log: Log) -> None:
        self.group.share_buffers(self.model)
        with uncached(self.model), self._averaged():
            figures = validate(self.model, self.data, self.recipe.validation, self.group)
        self.state.miou.append([self.state.step, figures["miou"]])
        chosen = self.recipe.validation.select and figures["miou"] >= self.state.best
        self.state.best = max(self.state.best, figures["miou"])
        log.write("validation", self.state.step, {**figures, "best_miou": self.state.best})
        if chosen:
            self._save_model(self.out / "best.safetensors")

    def _log_losses(self, log: Log, norm: Tensor | None, rate: float) -> None:
        every = self.recipe.log.every
        steps = (self.state.step - 1) % every + 1
        mine = {name: float(value) / steps for name, value in self.sums.items()}
        all_losses = self.group.gather(mine)
        losses = {name: sum(one[name] for one in all_losses) / len(all_losses) for name in mine}
        values = {"lr": self.optimiser.param_groups[0]["lr"], "episodes_per_s": round(rate, 2)}
        if norm is not None:
            values["gradient"] = float(norm)
        if not abs(losses["total"]) < float("inf"):
            raise FloatingPointError(
                f"step {self.state.step}: the loss is {losses['total']}; the learning rate "
                f"{values['lr']:g} may be too large, or run.precision too low"
            )
        log.write("train", self.state.step, {**losses, **values})

    def _save_model(self, path: Path) -> None:
        if self.group.first:
            with uncached(self.model), self._averaged():
                self.model.save(path)

    def _averaged(self) -> AbstractContextManager[None]:
        return nullcontext() if self.average is None else self.average.applied()

    def _save_checkpoint(self) -> None:
        self.group.share_buffers(self.model)
        random_states = self.group.gather(random_state(self.group.device))
        sums = self.group.gather({name: float(value) for name, value in self.sums.items()})
        if not self.group.first:
            return
        state = {
            "format": FORMAT,
            "recipe": deciding(self.recipe),
            "digest": recipe_digest(self.recipe),
            "step": self.state.step,
            "best": self.state.best,
            "miou": self.state.miou,
            "sampler": {
                "digest": self.data.sampler.digest,
                "next": self.state.step * self.recipe.run.batch,
            },
            "optimiser": self.optimiser.state_dict(),
            "schedule": {"step": self.state.step, "steps": self.steps},
            "scaler": self.scaler.state_dict(),
            "random": random_states,
            "sums": sums,
            "average": None if self.average is None else self.average.state_dict(),
        }
        with uncached(self.model):
            state["model"] = self.model.state_dict()
        self.checkpoints.save(self.state.step, state)

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.state = _State(state["step"], state["best"], state["miou"])
        if len(state["random"]) == self.group.count:
            self.random = state["random"][self.group.rank]
            sums = state["sums"][self.group.rank]
            self.sums = {name: torch.tensor(value) for name, value in sums.items()}

    def _open_cache(self, log: Log) -> None:
        recipe, group = self.recipe, self.group

        def progress(done: int, missing: int) -> None:
            if done == missing or done % _CACHE_REPORT == 0:
                log.say(f"maps of the encoder: {done} of {missing} images")

        self.cache = build_cache(
            self.model,
            self.data.images,
            sorted({n for images in self.data.sampler.large.values() for n in images}),
            size=recipe.transform.size,
            folder=Path(recipe.cache.folder) if recipe.cache.folder else self.out / "maps",
            mirrored=recipe.transform.flip > 0,
            dtype=recipe.cache.maps,
            limit_gib=recipe.cache.limit_gib,
            share=(group.rank, group.count),
            progress=progress,
        )
        group.wait()
        self.model.encoder = CachedEncoder(self.model.encoder)

    # ---- What is said

    def open_log(self, progress: Progress) -> Log:
        """The run's log; only the first process says and writes anything."""
        return Log(
            self.out if self.group.first else None,
            self.steps,
            self.state.step,
            tensorboard=self.recipe.log.tensorboard,
            progress=progress,
        )

    def describe(self, log: Log) -> None:
        """Say and write what is run."""
        record = run_record(
            self.recipe,
            self.data,
            self.group,
            steps=self.steps,
            trained=sum(p.numel() for g in self.optimiser.param_groups for p in g["params"]),
            resumed_at=self.state.step,
        )
        log.write("run", self.state.step, {k: v for k, v in record.items() if k != "recipe"})
        log.say(summary(self.recipe.about, record))
        if self.group.first:
            write_text_atomically(self.out / "run.json", json.dumps(record, indent=2) + "\n")
