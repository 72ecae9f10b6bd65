"""Runs the cases of CLIP RN50: towers, tokenizer, preparation, and Grad-CAM."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fastfss.text import cam, tokens
from fastfss.text.clip import ClipTower, centre_square, normalised, tower_of
from tests.parity.golden import Case, Report


def run_clip(case: Case, report: Report) -> None:
    kind = str(case["kind"])
    runners = {
        "forward": _forward,
        "gradcam": _gradcam,
        "preprocess": _preprocess,
        "tokenizer": _tokenizer,
    }
    runners[kind](case, report)


def _tower(case: Case) -> ClipTower:
    weights = case.weights()
    scale = float(case.value("bn3_scale", 1.0))  # type: ignore[arg-type]
    for key in weights:
        if re.fullmatch(r"visual\.layer\d\.\d+\.bn3\.weight", key):
            weights[key] = (weights[key].double() * scale).float()
    return tower_of(weights)


def _prepared(case: Case) -> Tensor:
    """The stored image, which has the tower's size already."""
    return normalised(Image.fromarray(case["image"].transpose(1, 2, 0)))[None]


def _compare_tokens(case: Case, report: Report) -> None:
    ours = tokens.tokenize([str(text) for text in case["prompts"]])
    report.compare("tokens", ours.float(), case["tokens"].astype(np.float32), tolerance=0)


@torch.no_grad()
def _forward(case: Case, report: Report) -> None:
    _compare_tokens(case, report)
    tower, images = _tower(case), _prepared(case)
    visual = tower.model.visual
    maps = {"stem_layer1": visual.layer1(visual.stem(images))}
    for number in (2, 3, 4):
        stage = getattr(visual, f"layer{number}")
        maps[f"layer{number}"] = stage(maps["stem_layer1" if number == 2 else f"layer{number - 1}"])
    for name, (channels, places) in {
        "stem_layer1": (16, 4),
        "layer2": (32, 4),
        "layer3": (32, 2),
        "layer4": (32, 1),
    }.items():
        report.compare(name, maps[name][0, ::channels, ::places, ::places], case[name])
    activations = tower.activations(images)
    attention, _ = tower.attention(activations)
    report.compare("pool_attention", attention[0], case["pool_attention"])
    image = tower.pool(activations)
    report.compare("image_features", image[0], case["image_features"])
    text = tower.text_features([str(one) for one in case["prompts"]])
    report.compare("text_features", text, case["text_features"])
    classes = torch.nn.functional.normalize(text, dim=1)
    cosines = (torch.nn.functional.normalize(image, dim=1) @ classes.t())[0]
    scale = tower.model.logit_scale.exp()
    report.compare("logit_scale", scale, case["logit_scale"])
    report.compare("logits_per_image", scale * cosines, case["logits_per_image"])
    report.compare("imr_logits", cam.SCALE * cosines, case["imr_logits"])
    found = cam.probabilities(tower, activations, classes)[0]
    report.compare("imr_softmax", found, case["imr_softmax"])


@torch.no_grad()
def _gradcam(case: Case, report: Report) -> None:
    _compare_tokens(case, report)
    tower, images = _tower(case), _prepared(case)
    prompts = [str(text) for text in case["prompts"]]
    classes = cam.class_features(tower, prompts, "{}")
    activations = tower.activations(images)
    report.compare("activations", activations[0, ::32], case["activations"])
    found = cam.probabilities(tower, activations, classes)[0]
    report.compare("probabilities", found, case["probabilities"])
    labels = case.tensor("labels").long()
    coarse = cam.coarse_maps(tower, activations, classes, torch.zeros_like(labels), labels)
    large = cam.stretched(coarse, tower.size)
    maps = cam.class_maps(tower, images, classes, [(0, int(label)) for label in labels])
    for place, label in enumerate(labels.tolist()):
        report.compare(f"cam7_label{label}", coarse[place], case[f"cam7_label{label}"])
        report.compare(f"cam224_label{label}", large[place, ::4, ::4], case[f"cam224_label{label}"])
        report.compare(f"cam_label{label}", maps[place], case[f"cam_label{label}"])


def _preprocess(case: Case, report: Report) -> None:
    prepared = centre_square(torch.from_numpy(case["image"]).permute(2, 0, 1), 224)
    report.compare("output", prepared[:, ::4, ::4], case["output"])
    report.compare("corner", prepared[:, :8, :8], case["corner"])


def _tokenizer(case: Case, report: Report) -> None:
    strings = json.loads(str(case["strings_json"]))
    ids = json.loads(str(case["ids_json"]))
    assert [tokens.encode(text) for text in strings] == ids
    assert [tokens.decode(one) for one in ids] == json.loads(str(case["decoded_json"]))
    rows = tokens.tokenize(strings)
    report.compare("tokens", rows.float(), case["tokens"].astype(np.float32), tolerance=0)
    long = str(case["long_text"])
    with pytest.raises(ValueError, match="at most 75 tokens"):
        tokens.tokenize([long])
    cut = tokens.tokenize([long], truncate=True)
    wanted = case["long_tokens_truncated"].astype(np.float32)
    report.compare("long_tokens_truncated", cut.float(), wanted, tolerance=0)
