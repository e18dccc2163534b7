"""The weak model of a reflection run.

A weak model with other weights is loaded together with the strong one. A clone of the strong model uses the weights of
the strong one; its LoRAs, model options and object patches are applied only for the length of a phase.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import torch
from comfy.model_sampling import CONST
from torch import Tensor

from ...errors import CheckpointMismatch, InvalidConfig
from ..guidance.run_term import note_levels
from ..weights import beside, compute_dtype, is_dynamic, stored_weights
from .lora_gap import LoraGap

WEAK_KEY = "teefusion_weak"  # additional model of the strong patcher
CACHE_KEY = "easycache"  # transformer option of the host's EasyCache and LazyCache


class WeakModel:
    """The weak side of a run; its options and conds are valid between `enter` and `leave`."""

    def __init__(self, strong, weak):
        """Combine the two models.

        Args:
            strong: MODEL of the run; a weak model with other weights is registered on it to be loaded with it.
            weak: MODEL of the same latent space and kind of noise, or the strong one itself.
        Raises:
            CheckpointMismatch: latent spaces or kinds of noise differ.
            InvalidConfig: two clones differ in something that cannot change during a run, or a model uses EasyCache or
                LazyCache.
        """
        check_compatible(strong, weak)
        _check_uncached(strong, weak)
        self.shared = weak.model is strong.model
        if self.shared:
            _check_exchangeable(strong, weak)
            self.patcher = weak
            if weak is not strong and (models := weak.model_patches_models()):
                strong.set_additional_models(WEAK_KEY, models)
        else:
            strong.set_additional_models(WEAK_KEY, [weak])
            self.patcher = strong.get_additional_models_with_key(WEAK_KEY)[0]
        self.strong, self.gap = strong, LoraGap([])
        self.conds: dict[str, list[dict]] = {}
        self.options: dict = {}

    def following(self, strong) -> WeakModel:
        """Return the weak side on the copy of the weights that the host has loaded for LoRA hooks (dynamic VRAM).

        Args:
            strong: the MODEL that the host has put in the place of the strong one.
        """
        weak = copy.copy(self)
        weak.strong = strong
        if self.patcher is self.strong:
            weak.patcher = strong
        elif self.shared:
            weak.patcher = beside(self.patcher, strong)
        elif is_dynamic(self.patcher):
            weak.patcher = self.patcher.get_non_dynamic_delegate()
            strong.set_additional_models(WEAK_KEY, [weak.patcher])
        return weak

    @property
    def network(self):
        """Return the host's model object of the weak side."""
        return self.patcher.model

    @property
    def _moves_patches(self) -> bool:
        """Whether the patches of the network are ours to move: the host moves those of the models that it loads."""
        return self.shared and self.patcher is not self.strong

    def predicts_the_same(self) -> bool:
        """Return whether both sides predict the same for the same prompt and scale; call it at the end of a run."""
        if _extras(self.patcher) != _extras(self.strong):
            return False
        if self.shared:
            return not self.gap.effective
        if self.patcher.patches or self.strong.patches:
            return False
        ours, theirs = (stored_weights(patcher, "") for patcher in (self.patcher, self.strong))
        return ours.keys() == theirs.keys() and all(_equal(ours[key], theirs[key]) for key in ours)

    def enter(
        self, conds: dict[str, list[dict]], sigmas: Tensor, noise: Tensor, device, hooked: bool = False, **context
    ) -> None:
        """Prepare a run; the strong model must be loaded.

        Args:
            conds: prompts by role, before the host has processed them.
            sigmas: noise levels of the run [S+1].
            noise: starting noise [B,...].
            device: compute device of the run.
            hooked: whether a prompt of either side has LoRA hooks.
            **context: other arguments of the host's `process_conds` (latent_image, denoise_mask, seed, latent_shapes).
        Raises:
            InvalidConfig: prompts have LoRA hooks while two LoRA settings share one copy of the weights.
        """
        dtype = self.patcher.model_dtype()
        if self._moves_patches:
            self.patcher.model_patches_to(device)
            self.patcher.model_patches_to(dtype)
        self.options = comfy.model_patcher.create_model_options_clone(self.patcher.model_options)
        own = {} if self.shared else conds
        kept = self.patcher.hook_patches, self.patcher.hook_patches_backup
        comfy.sampler_helpers.prepare_model_patcher(self.patcher, own, self.options)
        if self.shared:  # preparing again drops the hooks that the run has registered for both sides
            self.patcher.hook_patches, self.patcher.hook_patches_backup = kept
        comfy.samplers.filter_registered_hooks_on_conds(own, self.options)
        self.options.setdefault("transformer_options", {})["sample_sigmas"] = sigmas
        self.options.pop("multigpu_clones", None)
        comfy.samplers.cast_to_load_options(self.options, device=device, dtype=dtype)
        if self.shared:
            self.gap = LoraGap.between(self.strong, self.patcher)
            if hooked and self.gap:
                raise InvalidConfig(
                    "strong and weak model share their weights but differ in LoRAs, while a prompt has LoRA hooks; "
                    "remove one of the two, or load the weak model from its own file"
                )
            self.gap.to(device, compute_dtype(self.network))
        else:
            self.patcher.pre_run()
        if hasattr(self.network, "latent_shapes"):  # of a newer host, which sets them on the strong network only
            self.network.latent_shapes = context.get("latent_shapes")
        note_levels(conds, sigmas)
        with self.active():
            self.conds = comfy.samplers.process_conds(self.network, noise, conds, device, **context)

    def leave(self) -> None:
        """Release everything that belongs to the run."""
        comfy.samplers.cast_to_load_options(self.options, device=self.patcher.offload_device)
        comfy.sampler_helpers.cleanup_models(self.conds, [])
        if self._moves_patches:
            self.patcher.model_patches_to(self.patcher.offload_device)
        if not self.shared:
            self.patcher.cleanup()
            self.patcher.restore_hook_patches()
        self.conds, self.options, self.gap = {}, {}, LoraGap([])

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make `network` compute as the weak model inside the block."""
        if not self.shared:
            yield
            return
        with self.gap.active(), _objects_of(self.patcher, self.strong):
            yield


def check_compatible(strong, weak) -> None:
    """Refuse a weak model with another latent space or kind of noise."""
    mine, theirs = (patcher.get_model_object("latent_format") for patcher in (weak, strong))
    if type(mine) is not type(theirs):
        raise CheckpointMismatch(
            f"the weak model works in the latent space {type(mine).__name__}, the strong one in "
            f"{type(theirs).__name__}; choose two models of one family"
        )
    flow = [isinstance(patcher.get_model_object("model_sampling"), CONST) for patcher in (weak, strong)]
    if flow[0] != flow[1]:
        raise CheckpointMismatch(
            "one of the two models is a flow model, the other predicts noise; choose two models of one family"
        )


def _check_uncached(*patchers) -> None:
    """Refuse caches that reuse the previous prediction."""
    if any(CACHE_KEY in patcher.model_options.get("transformer_options", {}) for patcher in patchers):
        raise InvalidConfig(
            "EasyCache and LazyCache cannot be used with reflection sampling: they would reuse the prediction of the "
            "wrong pass. Remove the cache node"
        )


def _check_exchangeable(strong, weak) -> None:
    """Refuse differences between clones that cannot be switched for one phase."""
    for name, what in (
        ("weight_wrapper_patches", "weight wrappers"),
        ("injections", "a bypass LoRA or another injection"),
        ("hook_patches", "LoRA hooks"),
    ):
        if _flat(getattr(strong, name, {})) != _flat(getattr(weak, name, {})):
            raise InvalidConfig(
                f"strong and weak model share their weights but differ in {what}, which cannot change during a run; "
                "use an ordinary LoRA loader, or load the weak model from its own file"
            )


@contextmanager
def _objects_of(weak, strong) -> Iterator[None]:
    """Apply the object patches of `weak` to the shared model inside the block."""
    names = {n for n in {*weak.object_patches, *strong.object_patches} if _object(weak, n) is not _object(strong, n)}
    mine = {name: weak.get_model_object(name) for name in names}
    merged = {name: comfy.utils.set_attr(strong.model, name, value) for name, value in mine.items()}
    try:
        yield
    finally:
        for name, value in merged.items():
            comfy.utils.set_attr(strong.model, name, value)


def _object(patcher, name: str):
    return patcher.object_patches.get(name)


def _extras(patcher) -> list:
    """Return everything that a model has besides its weights."""
    return [_flat(part) for part in (patcher.model_options, patcher.object_patches, patcher.wrappers)]


def _flat(options: dict) -> list:
    """Return model options by identity of their values: a clone copies the containers, not their contents."""
    if isinstance(options, dict):
        return [(str(key), _flat(value)) for key, value in sorted(options.items(), key=lambda item: str(item[0]))]
    return [_flat(value) for value in options] if isinstance(options, list) else [id(options)]


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(torch.equal(a, b.to(a.device)))
