"""Guidance functions of other nodes: those with a memory are refused, those that make NaN are named."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch

from .reflection_parts import STEPS, counted, randn, relative

pytestmark = pytest.mark.usefixtures("as_the_host_runs_nodes")
PRE, POST = "set_model_sampler_pre_cfg_function", "set_model_sampler_post_cfg_function"
CFG = "set_model_sampler_cfg_function"


def with_function(model, function, where=POST):
    patched = model.clone()
    getattr(patched, where)(function)
    return patched


def momentum_in_the_options(ema):
    """As Momentum Guidance keeps it; at ema 1 the first prediction stays for the whole run."""

    def post(args):
        held, now = args["model_options"].setdefault("momentum", {}), args["denoised"]
        mean = held.get("mean", now)
        held["mean"] = (1 - ema) * now + ema * mean
        return now + 0.5 * (now - mean)

    return post, POST


def error_in_an_object():
    """As SMC-CFG computes, but remembering in the object that is called."""

    class Sliding:
        before = None

        def __call__(self, args):
            error = args["cond_denoised"] - args["uncond_denoised"]
            slope = error if self.before is None else error + 5 * self.before
            self.before = error - 0.1 * slope / slope.norm()
            return args["input"] - args["uncond_denoised"] - args["cond_scale"] * self.before

    return Sliding(), CFG


def first_calls_only():
    """Guidance in the first calls, counted without a look at the noise level."""
    calls = []

    def pre(args):
        calls.append(1)
        return args["conds_out"] if len(calls) > 1 else [2 * args["conds_out"][0], *args["conds_out"][1:]]

    return pre, PRE


REMEMBER = {
    "momentum": lambda: momentum_in_the_options(0.6),
    "first prediction": lambda: momentum_in_the_options(1.0),
    "sliding mode": error_in_an_object,
    "counter": first_calls_only,
}


def test_a_refusal_leaves_the_state_as_it_was(top, world):
    state, seen, last = SimpleNamespace(mean=None), {}, None  # the host copies objects in the options, not closures

    def post(args):
        nonlocal last
        now = args["denoised"]
        state.mean = now if state.mean is None else 0.5 * (state.mean + now)
        last = seen["last"] = now
        return 1.5 * now - 0.5 * state.mean

    with pytest.raises(top.pack.errors.InvalidConfig, match="leaves_the_state.*post"):
        top.reflect(world, model=with_function(world.model, post))
    assert state.mean is None and seen == {} and last is None


def apg(model, momentum):
    from comfy_extras.nodes_apg import APG

    return APG.execute(model, 1.0, 5.0, momentum).args[0]


@pytest.mark.parametrize("name", REMEMBER)
@pytest.mark.parametrize("side", ["strong", "weak"])
def test_a_memory_is_refused_and_named(top, world, name, side):
    function, where = REMEMBER[name]()
    patched = with_function(world.model, function, where)
    sides = {"model": patched} if side == "strong" else {"weak": patched}
    outer = getattr(function, "__qualname__", type(function).__qualname__).partition(".")[0]
    with counted(world.model) as passes, pytest.raises(top.pack.errors.InvalidConfig, match=f"{outer} .*earlier"):
        top.reflect(world, scales=(3.0, 1.5, 3.0), **sides)
    assert passes == []


def test_the_stock_node_with_momentum_is_refused_by_its_name(top, world):
    with pytest.raises(top.pack.errors.InvalidConfig, match=r"^APG.* of ComfyUI .*momentum"):
        top.reflect(world, model=apg(world.model, -0.75))
    top.reflect(world, model=apg(world.model, 0.0))


def test_one_of_several_is_blamed(top, world):
    function, where = momentum_in_the_options(0.6)
    model = with_function(with_function(world.model, lambda args: args["denoised"] * 1.1), function, where)
    with pytest.raises(top.pack.errors.InvalidConfig, match="momentum_in_the_options") as caught:
        top.reflect(world, model=model)
    assert "lambda" not in str(caught.value)


def by_noise_level(args):
    return args["denoised"] * (1.2 if float(args["sigma"].max()) > 0.6 else 0.9)


def random_everywhere(args):
    return args["denoised"] + 0.1 * torch.randn_like(args["denoised"])


def own_generator():
    generator = torch.Generator().manual_seed(3)
    return lambda args: args["denoised"] + 0.1 * torch.randn(args["denoised"].shape, generator=generator)


def cached_by_input():
    seen = {}

    def post(args):
        return seen.setdefault(args["denoised"].sum().item(), 1.1 * args["denoised"])

    return post


def another_pass(args):
    import comfy.samplers

    parts = args["model"], [args["cond"]], args["input"], args["sigma"], args["model_options"]
    return args["denoised"] + 0.3 * (args["denoised"] - comfy.samplers.calc_cond_batch(*parts)[0])


@pytest.mark.parametrize("make", [
    lambda: by_noise_level, lambda: random_everywhere, own_generator, cached_by_input, lambda: another_pass,
], ids=["noise level", "random", "own generator", "cached by input", "another pass"])  # fmt: skip
def test_other_functions_are_not(top, world, make):
    function = make()
    model = with_function(world.model, function)
    plain = top.reflect(world).samples
    assert relative(top.reflect(world, model=model).samples, plain) > 1e-3


def in_half(args):
    return args["denoised"].to(torch.bfloat16).mul(1.1).float()


def in_half_in_any_order():
    calls = iter(range(100))

    def post(args):
        rounded = args["denoised"].to(torch.bfloat16).float()
        rounded.flatten()[next(calls) :: 97] *= 1 + torch.finfo(torch.bfloat16).eps
        return rounded

    return post


def momentum_in_half():
    mean = []

    def post(args):
        mean.append(args["denoised"].to(torch.bfloat16))
        return (args["denoised"] + 0.05 * sum(mean[:-1], torch.zeros(()))).float()

    return post


@pytest.mark.parametrize("cells", [8, 128])
@pytest.mark.parametrize(
    ("make", "found"), [(lambda: in_half, 0), (in_half_in_any_order, 0), (momentum_in_half, 1)],
    ids=["half", "half, any order", "momentum"],
)  # fmt: skip
def test_rounding_is_no_memory_at_any_size(top, world, make, found, cells):
    x, model = randn(1, 1, 16, cells, cells), with_function(world.model, make())
    with_memory = top.pack.comfy_host.with_memory
    assert len(with_memory(model.model, model.model_options, x, top.sigmas(world, 4), 5.0)) == found


def test_the_trial_costs_no_pass_and_leaves_no_trace(top, world):
    calls, held, every = 0, {"calls": 0}, torch.zeros(())

    def post(args):
        nonlocal calls
        calls, held["calls"] = calls + 1, held["calls"] + 1
        every.add_(1)  # in place, so that the trial is counted too
        return 1.1 * args["denoised"]

    top.reflect(world)
    expected = torch.randn(3)
    with counted(world.model) as passes:
        run = top.reflect(world, model=with_function(world.model, post), weak=world.model)
    assert torch.equal(torch.randn(3), expected), "the trial changed the random numbers of the run"
    evaluations = STEPS + 2 * (STEPS - 1)
    assert calls == held["calls"] == STEPS + STEPS - 1
    assert int(every) == calls + 3
    assert sum(rows for _, rows in passes) == run.guider.passes == 2 * evaluations - (STEPS - 1)


@pytest.mark.parametrize("where", [PRE, POST])
def test_what_makes_nan_is_named_with_its_scale(top, world, where):
    def divided(args):
        if where == POST:
            return args["denoised"] * (0 * args["cond_scale"] / torch.tensor(args["cond_scale"]))
        args["conds_out"][0] /= args["cond_scale"] - 1.5  # in place, as some packs do
        return args["conds_out"]

    scale = 0.0 if where == POST else 1.5
    model = with_function(world.model, divided, where)
    with pytest.raises(top.pack.errors.InvalidConfig, match=f"^test_what_makes_nan.*divided.*NaN.*scale {scale:g} and"):
        top.reflect(world, model=model, scales=(3.0, scale, 3.0))
    top.reflect(world, model=model, scales=(3.0, 1.0, 3.0))


class TestTeacher:
    @pytest.fixture
    def taught(self, host, pack, world):
        def check(model, cfg=3.0):
            teacher = pack.comfy_host.Teacher(
                host.comfy.samplers.CFGGuider(model), host.comfy.samplers.sampler_object("euler")
            )
            teacher.check(world.positive, world.negative, torch.randn(1, 16, 8, 8), cfg)

        return check

    def test_a_memory_is_not_blamed_on_the_sampler(self, pack, world, taught):
        with pytest.raises(pack.errors.InvalidConfig, match="momentum_in_the_options.*earlier steps"):
            taught(with_function(world.model, *momentum_in_the_options(0.6)))
        with pytest.raises(pack.errors.InvalidConfig, match="^APG.*earlier steps"):
            taught(apg(world.model, -0.75))

    def test_nan_is_named(self, pack, world, taught):
        with pytest.raises(pack.errors.InvalidConfig, match="lambda.*NaN.*scale 2 "):
            taught(with_function(world.model, lambda args: args["denoised"] * float("nan")), cfg=2.0)
        taught(world.model)

    def test_the_pack_whose_code_fails_is_named(self, pack, world, taught, tmp_path):
        file = tmp_path / "custom_nodes" / "somebodys-pack" / "guide.py"
        file.parent.mkdir(parents=True)
        file.write_text("def guide(args):\n    return args['forgotten']\n", encoding="utf-8")
        spec = importlib.util.spec_from_file_location("somebodys_guide", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        with pytest.raises(pack.errors.TeacherFailed, match="pack somebodys-pack: KeyError: 'forgotten'.*report") as c:
            taught(with_function(world.model, module.guide))
        assert isinstance(c.value.__cause__, KeyError) and "somebodys_guide" not in sys.modules

    def test_errors_of_nobody_else_stay_as_they_are(self, world, taught):
        def fails(args):
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            taught(with_function(world.model, fails))
