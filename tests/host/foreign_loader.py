"""A MODEL as loaders of quantised files bring it: tensors of a class of their own, decoded and patched by the layer."""

import torch


class Coded(torch.Tensor):
    """Rows of integers with a scale each; its constructor needs arguments, and operations forget them."""

    def __new__(cls, values, *, scale, patches=()):
        return super().__new__(cls, values)

    def __init__(self, values, *, scale, patches=()):
        super().__init__()
        self.scale, self.patches = scale, list(patches)

    def to(self, *args, **kwargs):
        return self

    def detach(self):
        return self

    def clone(self, **kwargs):
        return self

    def decoded(self):
        with_class = self.view(self.shape) * self.scale
        return torch.Tensor(with_class) if isinstance(with_class, Coded) else with_class


def coded(weight):
    scale = weight.abs().amax(1, keepdim=True) / 127
    return Coded((weight / scale).round().to(torch.int8), scale=scale)


def _operations(comfy):
    class Operations(comfy.ops.manual_cast):
        class Linear(comfy.ops.manual_cast.Linear):
            def _save_to_state_dict(self, destination, prefix, keep_vars):
                super()._save_to_state_dict(destination, prefix, keep_vars)
                destination[f"{prefix}temp.weight"] = torch.empty(1, device="meta")  # no such parameter

            def forward(self, x):
                weight = self.weight.decoded()
                for patches, key in self.weight.patches:
                    weight = comfy.lora.calculate_weight(patches, weight, key)
                return torch.nn.functional.linear(x, weight.to(x), None if self.bias is None else self.bias.to(x))

    return Operations


def _patcher(mp):
    class ForeignPatcher(mp.ModelPatcher):
        def patch_weight_to_device(self, key, device_to=None, inplace_update=False, **kwargs):
            weight = mp.comfy.utils.get_attr(self.model, key)
            if not isinstance(weight, Coded):
                return super().patch_weight_to_device(key, device_to, inplace_update, **kwargs)
            weight.patches = [(self.patches[key], key)] if key in self.patches else []

        def unpatch_model(self, device_to=None, unpatch_weights=True):
            for weight in self.model.parameters() if unpatch_weights else ():
                if isinstance(weight, Coded):
                    weight.patches = []
            return super().unpatch_model(device_to, unpatch_weights)

    return ForeignPatcher


def foreign_model(comfy, path):
    """Return (MODEL with coded weights, function that makes a stock MODEL with the decoded weights)."""
    operations, state = _operations(comfy), comfy.utils.load_torch_file(str(path))
    options = {"custom_operations": operations, "dtype": torch.float32}
    loaded = comfy.sd.load_diffusion_model_state_dict(dict(state), model_options=options)
    decoded = {name: value.float() for name, value in state.items()}
    for name, layer in loaded.model.diffusion_model.named_modules():
        if isinstance(layer, operations.Linear):
            layer.weight = torch.nn.Parameter(coded(layer.weight.data.float()), requires_grad=False)
            decoded[f"{name}.weight"] = layer.weight.decoded().clone()
    model = _patcher(comfy.model_patcher)(loaded.model, loaded.load_device, loaded.offload_device)

    def twin():
        return comfy.sd.load_diffusion_model_state_dict(dict(decoded), model_options={"dtype": torch.float32})

    return model, twin
