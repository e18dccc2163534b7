"""A graph made as a person makes it: nodes found by typing, wires dragged, Run pressed."""

PROMPT = "a large red circle on a white background"
COLUMNS = (100, 370, 710, 1000, 1280)
NODES = {  # key -> name in the search, type, column, top
    "model": ("Load Demo Model", "TinySD3Loader", 0, 180),
    "prompt": ("CLIP Text Encode (Prompt)", "CLIPTextEncode", 1, 180),
    "null": ("CLIP Text Encode (Prompt)", "CLIPTextEncode", 1, 420),
    "empty": ("EmptySD3LatentImage", "EmptySD3LatentImage", 1, 660),
    "fusion": ("TeEFusion Conditioning", "TeEFusionConditioning", 2, 180),
    "sampler": ("KSampler", "KSampler", 3, 180),
    "decode": ("VAE Decode", "VAEDecode", 4, 180),
    "picture": ("Preview Image", "PreviewImage", 4, 420),
}
WIRES = [
    ("model", "CLIP", "prompt", "clip"), ("model", "CLIP", "null", "clip"), ("model", "MODEL", "fusion", "model"),
    ("prompt", "CONDITIONING", "fusion", "positive"), ("null", "CONDITIONING", "fusion", "null"),
    ("fusion", "MODEL", "sampler", "model"), ("fusion", "CONDITIONING", "sampler", "positive"),
    ("null", "CONDITIONING", "sampler", "negative"), ("empty", "LATENT", "sampler", "latent_image"),
    ("sampler", "LATENT", "decode", "samples"), ("model", "VAE", "decode", "vae"),
    ("decode", "IMAGE", "picture", "images"),
]  # fmt: skip
WIDGETS = [
    ("Load Demo Model", "variant", "student"), ("EmptySD3LatentImage", "width", 64),
    ("EmptySD3LatentImage", "height", 64), ("TeEFusion Conditioning", "guidance", 3), ("KSampler", "seed", 1),
    ("KSampler", "steps", 8), ("KSampler", "cfg", 1),
]  # fmt: skip


def test_a_student_samples_what_was_typed(ui, is_red_on_white):
    nodes = {}
    for key, (name, kind, column, top) in NODES.items():
        ui.drop(name, (COLUMNS[column], top))
        nodes[key] = ui.node(kind)
    for origin, output, target, socket in WIRES:
        ui.wire(nodes[origin], output, nodes[target], socket)
    for title, name, value in WIDGETS:
        ui.set_widget(title, name, value)
    ui.page.locator("textarea.comfy-multiline-input").first.fill(PROMPT)
    ui.shot("by_hand_wired")
    ended = ui.run()
    assert ended["kind"] == "execution_success", ended
    ui.shot("by_hand_sampled")
    (address,) = ui.pictures()["Preview Image"]
    assert is_red_on_white(address)
