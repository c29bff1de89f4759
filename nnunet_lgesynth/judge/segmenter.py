"""An nnU-Net fold checkpoint as a frozen, differentiable scorer: the reward and the judge.

    images (B, C, Y, X) --window--> patch --network--> logits (B, heads, Y, X) --> log P(label)

Images are in nnU-Net's preprocessed intensities and axes (what its data loader hands over before
augmentation); one 2D slice is one sample. The network sees exactly one patch of its own size per
slice: cropped where the slice is larger, zero-padded as nnU-Net's predictor pads where it is
smaller, without mirroring or sliding windows; outside the patch the background wins.
Gradients reach the images and never the weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.dataset.case import Fold, fold_folder, planar
from nnunet_lgesynth.judge.checkpoint import (
    CHECKPOINT,
    build_network,
    fold_of,
    hash_weights,
    load_weights,
    read_checkpoint,
    read_json,
    refuse_unsupported,
    train_command,
    unwrap,
    validated_cases,
)

__all__ = ["Segmenter", "default_reward_folder", "patch_start"]

BACKGROUND_LOGIT = 30.0          # outside the patch: exp(-30) is as good as 0, its log is finite
REAL_ONLY_TRAINER = "nnUNetTrainerLGEReal"


@dataclass(frozen=True, eq=False)
class Segmenter:
    """A frozen 2D nnU-Net. Make one with `load_fold`."""

    network: nn.Module
    plans: dict
    dataset_json: dict
    configuration: str
    fold: int | str               # "all" or the index of the fold
    source: Path                  # the checkpoint file
    hash: str                     # 12 hex digits of the weights alone
    device: torch.device

    @classmethod
    def load_fold(cls, fold_folder: str | Path, device: str | torch.device,
                  checkpoint: str = CHECKPOINT) -> Segmenter:
        """Load nnU-Net's `Trainer__Plans__configuration/fold_k` folder.

        Raises UserError for missing or unreadable files, 3D and cascade configurations, and
        weights that do not fit the network.
        """
        folder = Path(fold_folder).absolute()
        plans = read_json(folder.parent / "plans.json", folder)
        dataset_json = read_json(folder.parent / "dataset.json", folder)
        source = folder / checkpoint
        state = read_checkpoint(source, folder)
        configuration = state["init_args"]["configuration"]
        refuse_unsupported(plans, configuration, dataset_json, source)
        network = build_network(plans, configuration, dataset_json, state["trainer_name"], source)
        weights = unwrap(state["network_weights"], set(network.state_dict()))
        load_weights(network, weights, source)
        device = torch.device(device)
        network = network.requires_grad_(False).eval().to(device)
        return cls(network, plans, dataset_json, configuration, fold_of(folder, state), source,
                   hash_weights(weights), device)

    def to(self, device: str | torch.device) -> Segmenter:
        """The same segmenter on another device."""
        device = torch.device(device)
        return replace(self, network=self.network.to(device), device=device)

    @cached_property
    def labels(self) -> tuple[int, ...]:
        """Label values in rising order, background (0) first: the L axis of probabilities."""
        return tuple(int(v) for v in self._label_manager.all_labels)

    @property
    def channels(self) -> int:
        """Of its images."""
        return len(_channel_names(self.dataset_json))

    @property
    def plans_name(self) -> str:
        return self.plans["plans_name"]

    @cached_property
    def patch_size(self) -> tuple[int, int]:
        """Rows and columns the network sees."""
        return tuple(PlansManager(self.plans).get_configuration(self.configuration).patch_size)

    @cached_property
    def _label_manager(self):
        return PlansManager(self.plans).get_label_manager(self.dataset_json)

    def logits(self, images: Tensor, centre=None) -> Tensor:
        """Raw network outputs, differentiable in `images`.

        images: (B, C, Y, X), any Y and X. centre: pixel (row, column) the patch is centred on, one
        for all or (B, 2); default the image centre. The patch never leaves an image that is large
        enough. Returns (B, heads, Y, X) on the segmenter's device.
        """
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise UserError(f"{self.source} needs images of shape (B, {self.channels}, Y, X), not "
                            f"{tuple(images.shape)}; pass the channels of its dataset.json.")
        pads = _pads(images.shape, self.patch_size, centre)
        images = images.to(self.device, torch.float32)
        patches = torch.stack([F.pad(image, pad) for image, pad in zip(images, pads)])
        output = self.network(patches)
        if isinstance(output, (list, tuple)):    # deep supervision: full resolution comes first
            output = output[0]
        return torch.stack([self._place(one, pad) for one, pad in zip(output, pads)])

    def _place(self, patch: Tensor, pad: list[int]) -> Tensor:
        """Undo `pad` on one patch (heads, y, x); what the network did not see is background."""
        undo = [-p for p in pad]
        if self._label_manager.has_regions:
            return F.pad(patch, undo, value=-BACKGROUND_LOGIT)
        return torch.cat([F.pad(patch[:1], undo, value=BACKGROUND_LOGIT),
                          F.pad(patch[1:], undo, value=-BACKGROUND_LOGIT)])

    def log_probabilities(self, images: Tensor, centre=None) -> Tensor:
        """Log probability of each label value: (B, L, Y, X) float32 (also under autocast).

        Labels: log softmax. Regions: nnU-Net paints region after region in `regions_class_order`
        wherever its sigmoid p_i exceeds 1/2, so a pixel gets the value c_i of the LAST region that
        is on. With the regions' switches drawn independently this reads
            P(v) = sum over i with c_i = v of p_i * prod over j > i of (1 - p_j),
            P(0) = prod over all j of (1 - p_j),
        which sums to 1, is differentiable, and equals nnU-Net's rule where every p is 0 or 1. A
        value that no region stands for can never be predicted; its log is the floor -60.
        """
        logits = self.logits(images, centre).float()
        if not self._label_manager.has_regions:
            return F.log_softmax(logits, dim=1)
        return _region_log_probabilities(logits, self._label_manager.regions_class_order,
                                         self.labels)

    def probabilities(self, images: Tensor, centre=None) -> Tensor:
        """`log_probabilities`, exponentiated: (B, L, Y, X) float32, sums to 1 over L."""
        return self.log_probabilities(images, centre).exp()

    def predict(self, images: Tensor, centre=None) -> Tensor:
        """Label values (B, Y, X) int16 by nnU-Net's own conversion; no gradient.

        With regions this thresholds each sigmoid at 1/2 and so may differ from the argmax of
        `probabilities` where several regions are undecided.
        """
        with torch.no_grad():
            heads_first = self.logits(images, centre).float().transpose(0, 1).cpu().numpy()
        values = self._label_manager.convert_logits_to_segmentation(heads_first)
        return torch.from_numpy(values.astype(np.int16)).to(self.device)

    @cached_property
    def validated_on(self) -> frozenset[str]:
        """The cases that its training left out, as its validation's summary tells; else empty."""
        return validated_cases(self.source.parent, self.dataset_json["file_ending"])

    def check_fold(self, fold: Fold) -> None:
        """`check_matches` with a fold and its validation cases."""
        self.check_matches(fold.plans, fold.configuration, fold.dataset_json, fold.fold, fold.val)

    def check_matches(self, plans: dict, configuration: str, dataset_json: dict,
                      fold: int | str | None, val: Sequence[str] = ()) -> None:
        """Raise one UserError that names every difference that would make the scores meaningless.

        Patch and batch size, architecture and resampling may differ, and so may all that lies
        between slices: a 2D judge scores those of a 3D training. A checkpoint of another fold,
        or of "all", was trained on validation cases of this `fold`. `fold` "all" holds nothing
        out, so every checkpoint passes; None leaves the fold out (a judge of other patients).
        A checkpoint of the same fold under an earlier split is known by the cases it validated on,
        where it has: each of `val` must be among them.
        """
        mine = _signature(self.plans, self.configuration, self.dataset_json)
        theirs = _signature(plans, configuration, dataset_json)
        found = [f"{name} {mine[name]} (here {theirs[name]})"
                 for name in mine if not _same(mine[name], theirs[name])]
        if fold not in (None, "all") and str(fold) != str(self.fold):
            found.append(f"fold {self.fold}, which has seen validation cases of fold {fold} "
                         f"(here {fold})")
        seen = sorted(set(val) - self.validated_on) if self.validated_on else []
        if seen and fold not in (None, "all"):
            found.append(f"the validation cases of another split: {len(seen)} of this fold's "
                         f"{len(val)} (first: {seen[0]}) are not among them, so it may have seen "
                         "them")
        if found:
            flat = planar(plans, configuration)
            remedy = "Train one that fits with: " + train_command(
                plans["dataset_name"], plans["plans_name"], flat, "F" if fold is None else fold)
            if flat in plans["configurations"] and not _same(theirs["spacing"], _signature(
                    plans, flat, dataset_json)["spacing"]):
                remedy = f"None of {flat} has these pixels; use -c 3d_fullres, or paint by rule."
            raise UserError(f"{self.source} cannot judge this training; it has "
                            f"{'; '.join(found)}. {remedy}")


def default_reward_folder(results: str | Path, dataset_name: str, plans_name: str,
                          configuration: str, fold: int | str) -> Path:
    """Fold folder of the real-only checkpoint that serves as reward and judge by default.

    Stock `nnUNetTrainer` first, then `nnUNetTrainerLGEReal`; UserError where neither has finished.
    """
    folders = [fold_folder(Path(results), dataset_name, trainer, plans_name, configuration, fold)
               for trainer in ("nnUNetTrainer", REAL_ONLY_TRAINER)]
    for folder in folders:
        if (folder / CHECKPOINT).is_file():
            return folder
    stock = train_command(dataset_name, plans_name, configuration, fold)
    raise UserError(
        f"A real-only nnU-Net of this fold is needed as judge, and {folders[0] / CHECKPOINT} does "
        f"not exist, nor does {folders[1] / CHECKPOINT}. Train one with: {stock}  or: "
        f"{stock.replace('nnUNetv2_train', 'lgesynth train')} -tr {REAL_ONLY_TRAINER}")


def _pads(shape, patch, centre) -> list[list[int]]:
    """Per sample: left, right, top, bottom padding that cuts out the patch; negative crops."""
    size = shape[-2:]
    if centre is None:
        centre = (size[0] // 2, size[1] // 2)
    centres = torch.as_tensor(centre, dtype=torch.float32).cpu().expand(shape[0], 2)
    pads = []
    for pixel in centres.tolist():
        top, left = (patch_start(*each) for each in zip(size, patch, pixel))
        pads.append([-left, left + patch[1] - size[1], -top, top + patch[0] - size[0]])
    return pads


def patch_start(size: int, patch: int, centre: float) -> int:
    """First pixel of the patch along one axis; negative where nnU-Net's predictor pads."""
    if not math.isfinite(centre):
        raise UserError(f"The patch centre must be a pixel position, not {centre}.")
    if size <= patch:
        return -((patch - size) // 2)
    return min(max(round(centre) - patch // 2, 0), size - patch)


def _region_log_probabilities(logits: Tensor, order: list[int], labels: tuple[int, ...]) -> Tensor:
    off = F.logsigmoid(-logits)                                            # (B, R, Y, X)
    none_from = off.flip(1).cumsum(1).flip(1)            # region i and all later ones are off
    none_later = torch.cat([none_from[:, 1:], torch.zeros_like(off[:, :1])], dim=1)
    decides = F.logsigmoid(logits) + none_later
    terms: dict[int, list[Tensor]] = {value: [] for value in labels}
    terms[0].append(none_from[:, 0])
    for i, value in enumerate(order):
        terms[value].append(decides[:, i])
    floor = torch.full_like(off[:, 0], -2 * BACKGROUND_LOGIT)
    return torch.stack([torch.logsumexp(torch.stack(t), dim=0) if t else floor
                        for t in terms.values()], dim=1)


def _channel_names(dataset_json: dict) -> list[str]:
    names = dataset_json.get("channel_names", dataset_json.get("modality"))
    return [names[key] for key in sorted(names, key=int)]


def _signature(plans: dict, configuration: str, dataset_json: dict) -> dict:
    """All that decides what a judge's input and output mean."""
    if configuration not in plans["configurations"]:
        raise UserError(f"The plans {plans['plans_name']} have no configuration {configuration!r}, "
                        f"only {sorted(plans['configurations'])}.")
    manager = PlansManager(plans)
    settings = manager.get_configuration(configuration)
    labels = {k: tuple(v) if isinstance(v, (list, tuple)) else v
              for k, v in dataset_json["labels"].items()}
    schemes = list(settings.normalization_schemes)
    regions = manager.get_label_manager(dataset_json).has_regions
    return {
        "dataset": plans["dataset_name"],
        "channels": _channel_names(dataset_json),
        "spacing": [float(v) for v in settings.spacing[-2:]],       # in-plane
        "axes order": list(plans["transpose_forward"]),
        "normalization": schemes,
        "CT intensities": (manager.foreground_intensity_properties_per_channel
                           if "CTNormalization" in schemes else None),
        "normalization inside a mask": list(settings.use_mask_for_norm),
        "labels": labels,
        "regions' order": [list(labels), dataset_json["regions_class_order"]] if regions else None,
    }


def _same(mine, theirs) -> bool:
    if isinstance(mine, list) and mine and all(isinstance(v, float) for v in mine):
        return len(mine) == len(theirs) and np.allclose(mine, theirs, rtol=1e-3)
    return mine == theirs
