"""The model patcher for dynamic VRAM of newer hosts, emulated on a CPU, where the host itself never uses it.

Two things make it different. It hands out non-dynamic models that are loaded anew, for torch.compile and LoRA hooks.
And weights are never merged: a layer casts its weights with the LoRAs of the loaded MODEL once, and keeps the result
until a MODEL with other patches is loaded. Functions of a weight run after that, at every call.
"""

import contextlib

import torch

STREAMED = 16 * 1024  # bytes above which the host streams a layer; it merges smaller ones, as ever


def _class(mp):
    class EmulatedDynamic(mp.ModelPatcherDynamic):
        """The host's own class, but for what needs a GPU."""

        def __new__(cls, model, *args, **kwargs):
            if not hasattr(model, "diffusion_model"):  # on a CPU, a text encoder is loaded before it has its weights
                return mp.ModelPatcher(model, *args, **kwargs)
            return object.__new__(cls)

        def register_load_device(self, device):
            self.model.dynamic_pins[device] = {}

        def __del__(self):
            pass

        def set_in_use_by_current_prompt(self, in_use):
            pass

        def loaded_ram_size(self):
            return 0

        def pinned_memory_size(self):
            return 0

        def partially_unload_ram(self, *args, **kwargs):
            return 0

        def partially_unload(self, device_to, memory_to_free=0, force_patch_weights=False):
            assert not force_patch_weights
            _forget_casts(self.model)
            return self.restore_loaded_backups()

        def load(self, device_to=None, lowvram_model_memory=0, force_patch_weights=False, full_load=False, dirty=False):
            assert not force_patch_weights and not full_load and device_to == self.load_device
            self.restore_loaded_backups()
            with self.use_ejected():
                for path, module in self.model.named_modules():
                    self._load_layer(path, module, dirty)
            self.model.device, self.model.current_weight_patches_uuid = device_to, self.patches_uuid

        def _load_layer(self, path, module, dirty):
            names = [name for name, _ in module.named_parameters(recurse=False)]
            if not hasattr(module, "comfy_cast_weights"):
                return  # patches of such a module are not applied at all
            module.comfy_cast_weights = True
            size = sum(p.numel() * p.element_size() for p in module.parameters(recurse=False))
            if dirty or not hasattr(module, "resident"):
                module.resident = None
            streamed = [name for name in ("weight", "bias") if name in names and size > STREAMED]
            for name in streamed:
                key = f"{path}.{name}"
                patch = mp.LowVramPatch(key, self.patches) if key in self.patches else None
                setattr(module, f"{name}_lowvram_function", patch)
                setattr(module, f"{name}_function", list(self.weight_wrapper_patches.get(key, [])))
            if not streamed:
                del module.resident
            for name in set(names) - set(streamed):
                self.patch_weight_to_device(f"{path}.{name}", device_to=self.load_device, force_cast=True)

    return EmulatedDynamic


def _forget_casts(model):
    for module in model.modules():
        if hasattr(module, "resident"):
            module.resident = None


def _cast(stock):
    def cast(layer, input=None, dtype=None, device=None, bias_dtype=None, offloadable=False, **kwargs):
        if not hasattr(layer, "resident"):
            return stock(layer, input, dtype, device, bias_dtype, offloadable, **kwargs)
        dtype = dtype or (layer.weight if input is None else input).dtype
        if layer.resident is None:
            layer.resident = {name: _patched(layer, name, dtype) for name in ("weight", "bias")}
        out = dict(layer.resident)
        for name, wanted in (("weight", dtype), ("bias", bias_dtype or dtype)):
            if out[name] is not None:
                out[name] = out[name].to(wanted)
                for function in getattr(layer, f"{name}_function", []):
                    out[name] = function(out[name])
        return (out["weight"], out["bias"], (None, None, None)) if offloadable else (out["weight"], out["bias"])

    return cast


def _patched(layer, name, dtype):
    value, patch = getattr(layer, name), getattr(layer, f"{name}_lowvram_function", None)
    if value is None:
        return None
    stored = getattr(layer, f"{name}_comfy_model_dtype", None) or value.dtype
    with torch.no_grad():
        value = value.detach().to(stored, copy=True)
        return value if patch is None else patch(value.to(dtype)).to(stored)


@contextlib.contextmanager
def dynamic_vram(comfy):
    """Load all models inside the block with the emulated patcher.

    It unloads them at both ends, because a host with dynamic VRAM does not mix the two kinds by itself.
    """
    import comfy.model_patcher
    import comfy.ops

    assert hasattr(comfy.model_patcher, "ModelPatcherDynamic"), "dynamic VRAM needs a newer ComfyUI in COMFYUI_PATH"
    stock = comfy.model_patcher.CoreModelPatcher, comfy.ops.cast_bias_weight
    comfy.model_management.unload_all_models()
    comfy.model_patcher.CoreModelPatcher = _class(comfy.model_patcher)
    comfy.ops.cast_bias_weight = _cast(stock[1])
    try:
        yield
    finally:
        comfy.model_management.unload_all_models()
        comfy.model_patcher.CoreModelPatcher, comfy.ops.cast_bias_weight = stock
