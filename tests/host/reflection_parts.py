"""Small random networks of the host's own classes, each with its prompts, to reflect with."""

import contextlib
import sys
from types import SimpleNamespace

import torch
from golden_weights import relative  # noqa: F401  for those who import it from here

CPU = torch.device("cpu")
KINDS = ("flow", "eps", "v")
STEPS, SEED = 3, 5
SCALES = (3.0, 1.0, 3.0)
PROMPT = "a red circle left of a small blue square on a white background"
OTHER = "a green ring"
UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1],
    "channel_mult": [1, 2], "transformer_depth": [1, 1], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1], "context_dim": 32, "use_spatial_transformer": True, "legacy": False,
    "use_linear_in_transformer": False, "adm_in_channels": None,
}  # fmt: skip
UNET_LORA = ["middle_block.1.transformer_blocks.0.attn1.to_q", "middle_block.0.in_layers.2", "input_blocks.2.0.op"]
SD3_LORA = ["joint_blocks.1.x_block.attn.qkv", "joint_blocks.2.x_block.mlp.fc1", "x_embedder.proj"]


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randomise(network, seed, gain=1.0):
    """Fill every parameter, so that no layer answers zero; what is no parameter is zero instead of left as found."""
    generator = torch.Generator().manual_seed(seed)
    for buffer in network.buffers():
        buffer.zero_()
    with torch.no_grad():
        for parameter in network.parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(gain * values / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.1 * values)
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1 and name.endswith("weight"):  # of a norm
            parameter.data += 1


def difference(key, *shape):
    """Return a function that adds a difference to a weight of a MODEL, a patch that is no LoRA."""

    def patched(model):
        model = model.clone()
        assert model.add_patches({key: ("diff", (0.1 * randn(9, *shape),))}, 0.7)
        return model

    return patched


def unet(host, kind, seed, latent_format="SD15", dtype=torch.float32):
    """The host's UNet as a MODEL; kind is a name of the host's ModelType."""
    base = host.comfy.model_base
    config = host.comfy.supported_models.SD15(UNET)
    config.latent_format = getattr(host.comfy.latent_formats, latent_format)()
    config.set_inference_dtype(dtype, None)
    model = base.BaseModel(config, model_type=base.ModelType[kind], device=CPU)
    randomise(model.diffusion_model, seed)
    return host.comfy.model_patcher.ModelPatcher(model, CPU, CPU)


def control_unet(host, seed=3):
    config = {name: value for name, value in UNET.items() if name != "out_channels"}
    network = host.comfy.cldm.cldm.ControlNet(**config, hint_channels=3, num_heads=8, dtype=torch.float32, device=CPU)
    randomise(network, seed)
    return host.comfy.controlnet.ControlNet(network, load_device=CPU)


def control_sd3(host, model, seed=3):
    """A ControlNet for the demo SD3, built the way the host builds one from a file."""
    network = host.comfy.cldm.mmdit.ControlNet(
        **{**model.model.model_config.unet_config, "num_blocks": 1, "dtype": torch.float32},
        device=CPU,
        operations=host.comfy.ops.disable_weight_init,
    )
    randomise(network, seed, gain=0.3)
    latent_format = host.comfy.latent_formats.SD3()
    return host.comfy.controlnet.ControlNet(network, compression_ratio=1, latent_format=latent_format, load_device=CPU)


def conditioning(seed, strength=1.0):
    return [[strength * randn(seed, 1, 4, UNET["context_dim"]), {}]]


class Bench:
    """What tests do with a host that has the pack."""

    def __init__(self, host, pack):
        self.host, self.pack, self.comfy, self.kept = host, pack, host.comfy, {}

    def module(self, name):
        """A module of the core as the host loaded it."""
        return sys.modules[f"{self.pack.module.__name__}.teefusion_core.{name}"]

    def load(self, variant):
        return self.pack.nodes["TinySD3Loader"].execute(variant).args

    def world(self, kind="flow"):
        """Models, prompts of a kind; built once."""
        if kind not in self.kept:
            self.kept[kind] = self._flow() if kind == "flow" else self._unet(kind)
        return self.kept[kind]

    def _flow(self):
        model, clip, vae = self.load("base")

        def build():
            return self.load("base")[0]

        prompts = [clip.encode_from_tokens_scheduled(clip.tokenize(words)) for words in (PROMPT, "", OTHER)]
        parts = dict(zip(("positive", "negative", "other"), prompts, strict=True))
        sides = {"model": model, "weak": self.load("weak")[0], "vae": vae, "build": build}
        return SimpleNamespace(kind="flow", channels=16, layers=SD3_LORA, **sides, **parts)

    def _unet(self, kind):

        def build(seed=1):
            return unet(self.host, {"eps": "EPS", "v": "V_PREDICTION"}[kind], seed)

        parts = {name: conditioning(seed) for seed, name in enumerate(("positive", "negative", "other"))}
        return SimpleNamespace(
            kind=kind, model=build(), weak=build(2), channels=4, layers=UNET_LORA, vae=None, build=build, **parts
        )

    def control(self, world):
        return control_sd3(self.host, world.model) if world.kind == "flow" else control_unet(self.host)

    def lora(self, model, layers, strength=1.0, seed=0):
        state, weights = {}, model.model.state_dict()
        for i, layer in enumerate(layers):
            shape = weights[f"diffusion_model.{layer}.weight"].shape
            up, down = randn(seed + i, shape[0], 2, *([1] * len(shape[2:]))), randn(seed + 50 + i, 2, *shape[1:])
            state[f"diffusion_model.{layer}.lora_up.weight"] = 0.3 * up
            state[f"diffusion_model.{layer}.lora_down.weight"] = 0.3 * down
        patched = self.comfy.sd.load_lora_for_models(model, None, state, strength, 0)[0]
        assert {f"diffusion_model.{layer}.weight" for layer in layers} <= patched.patches.keys()
        return patched

    def empty(self, world, batch=1, width=8):
        return {"samples": torch.zeros(batch, world.channels, 8, width)}

    def guider(self, world, *, model=None, weak=None, scales=SCALES, rule="CFG", alpha=0.5, **prompts):
        host = self.pack.comfy_host
        guider = host.ReflectionGuider(model or world.model, weak, scales=host.Scales(*scales), rule=rule, alpha=alpha)
        guider.set_conds(**{"positive": world.positive, "negative": world.negative, **prompts})
        return guider

    def sigmas(self, world, steps=STEPS, denoise=1.0, model=None):
        return self.pack.comfy_host.schedule(model or world.model, "normal", steps, denoise)

    def reflect(self, world, *, latent=None, steps=STEPS, denoise=1.0, seed=SEED, operator=None, guider=None, **sides):
        """Run guider with sampler as the nodes do."""
        guider = guider or self.guider(world, **sides)
        sampler = self.pack.comfy_host.ReflectionSampler(**(operator or {}))
        sigmas = self.sigmas(world, steps, denoise, guider.model_patcher)
        latent = latent or self.empty(world)
        out, cost = self.pack.comfy_host.run_reflection(guider, sampler, sigmas, latent, seed)
        assert torch.isfinite(out["samples"]).all()
        return SimpleNamespace(samples=out["samples"], latent=out, cost=cost, guider=guider)

    def euler(self, world, *, model=None, cfg=SCALES[0], positive=None, latent=None, steps=STEPS, denoise=1.0):
        import nodes

        prompts = positive or world.positive, world.negative
        arguments = (model or world.model, SEED, steps, cfg, "euler", "normal", *prompts, latent or self.empty(world))
        return nodes.KSampler().sample(*arguments, denoise=denoise)[0]["samples"]

    def unload(self):
        self.comfy.model_management.unload_all_models()

    def twins(self, world):
        """Two MODELs with the weights of the world's, that share nothing with it or each other."""
        if (world.kind, "twins") not in self.kept:
            self.kept[world.kind, "twins"] = [world.build(), world.build()]
        return self.kept[world.kind, "twins"]

    def assert_clean(self, model, weights):
        """Nothing of a run is left in a model: weights [name -> tensor] as before, no hook, no function."""
        self.unload()
        found = model.model.state_dict()
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[name], value) for name, value in weights.items())
        for name, module in model.model.named_modules():
            assert not module._forward_hooks and not module._forward_pre_hooks, name
            assert not getattr(module, "weight_function", None) and not getattr(module, "bias_function", None), name
        assert model.model.current_patcher is None


_KEPT = []


def bench(host, pack):
    if not _KEPT:
        _KEPT.append(Bench(host, pack))
    return _KEPT[0]


def weights_of(model):
    return {name: value.clone() for name, value in model.model.state_dict().items()}


@contextlib.contextmanager
def counted(*models):
    """Rows of every forward pass of the networks, in order, as [number of the model, rows]."""
    seen, handles = [], []
    for i, model in enumerate(models):
        network = model.model.diffusion_model
        handles.append(network.register_forward_pre_hook(lambda _, args, i=i: seen.append((i, len(args[0])))))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
