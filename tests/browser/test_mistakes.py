"""Mistakes that everybody makes, as the interface shows them: on the node, or as an error."""

import json
import shutil

import pytest
from runner.places import ROOT

STUDENT_FILE = "demo_sd3_student.safetensors"
SAMPLER, FUSION = "Student sampler", "TeEFusion Conditioning"
WORKFLOW = json.loads((ROOT / "workflows" / "01 Student beside teacher.json").read_text(encoding="utf-8"))
CONNECT = """([from, output, to, input]) => {
    const [source, target] = [from, to].map(title => app.graph.nodes.find(node => node.title === title))
    const named = (slots, name) => slots.findIndex(slot => slot.name === name)
    source.connect(named(source.outputs, output), target, named(target.inputs, input))
}"""
LEAVE_ONLY_THE_STUDENT = """() => {
    const others = ['Unguided', 'CFG', 'W2SD']
    app.graph.nodes.filter(node => others.some(name => node.title === `${name} sampler`
        || node.title === `Decode ${name === 'Unguided' ? 'unguided' : name}`)).forEach(node => app.graph.remove(node))
    const [decode, result] = ['Decode student', 'Result'].map(
        title => app.graph.nodes.find(node => node.title === title))
    app.graph.remove(app.graph.nodes.find(node => node.title === 'Compare Grid'))
    decode.connect(0, result, 0)
    decode.collapse?.()
}"""
PUT_A_LORA_BETWEEN = """file => {
    const lora = LiteGraph.createNode('LoraLoaderModelOnly')
    app.graph.add(lora)
    lora.pos = [325, -160]
    lora.widgets[0].value = file
    const [base, fusion] = ['Base model', 'TeEFusion Conditioning'].map(
        title => app.graph.nodes.find(node => node.title === title))
    base.connect(0, lora, 0)
    lora.connect(0, fusion, fusion.inputs.findIndex(input => input.name === 'model'))
}"""


def cfg_other_than_1(ui):
    ui.set_widget(SAMPLER, "cfg", 4)


def model_not_connected(ui):
    ui.page.evaluate(CONNECT, ["Student model", "MODEL", SAMPLER, "model"])


def conditioning_not_connected(ui):
    ui.page.evaluate(CONNECT, ["Prompt", "CONDITIONING", SAMPLER, "positive"])


def no_student(ui):
    ui.page.evaluate(CONNECT, ["Base model", "MODEL", FUSION, "model"])


def prompt_as_null(ui):
    ui.page.evaluate(CONNECT, ["Prompt", "CONDITIONING", FUSION, "null"])


def other_number_of_steps(ui):
    ui.set_widget("Student model", "variant", "student_8_steps")


def student_in_a_lora_loader(ui):
    ui.page.evaluate(PUT_A_LORA_BETWEEN, STUDENT_FILE)


WARNED = {
    cfg_other_than_1: "set cfg to 1: it is 4",
    model_not_connected: "connect MODEL to the sampler",
    conditioning_not_connected: "no prompt of this run carries guidance",
    no_student: "was not loaded from a student file",
    prompt_as_null: "it is the prompt itself",
    other_number_of_steps: "learned to sample in 8 steps, but this run has 2",
    student_in_a_lora_loader: "A student in a LoRA loader has no guidance",
}


@pytest.fixture(scope="module")
def lora_folder(server):
    """Put a student where LoRA loaders look."""
    shutil.copy(ROOT / "models" / STUDENT_FILE, server.log.parent / "base" / "models" / "loras" / STUDENT_FILE)


@pytest.mark.usefixtures("lora_folder")
@pytest.mark.parametrize("mistake", WARNED, ids=lambda mistake: mistake.__name__)
def test_a_mistake_is_named_on_a_node(ui, mistake):
    ui.load(WORKFLOW)
    ui.page.evaluate(LEAVE_ONLY_THE_STUDENT)
    ui.set_widget(SAMPLER, "steps", 2)
    mistake(ui)
    ui.set_widget(SAMPLER, "seed", 100 + list(WARNED).index(mistake))
    assert ui.run()["kind"] == "execution_success"
    ui.page.wait_for_timeout(1500)  # newer interfaces remove what nodes show when the run ends
    ui.shot(f"mistake_{mistake.__name__}", whole=True)
    shown = {node["title"]: str(node["widgets"]) for node in ui.nodes()}
    assert [title for title, text in shown.items() if WARNED[mistake] in text], shown


def test_a_warning_goes_when_the_mistake_is_mended(ui):
    ui.load(WORKFLOW)
    ui.page.evaluate(LEAVE_ONLY_THE_STUDENT)
    ui.set_widget(SAMPLER, "steps", 2)
    for seed, cfg in ((201, 4), (202, 1)):
        ui.set_widget(SAMPLER, "cfg", cfg)
        ui.set_widget(SAMPLER, "seed", seed)
        assert ui.run()["kind"] == "execution_success"
        ui.page.wait_for_timeout(1500)
        [shown] = [str(node["widgets"]) for node in ui.nodes() if node["title"] == SAMPLER]
        assert ("TeEFusion warning" in shown) == (cfg != 1), shown


def test_a_guidance_that_the_student_never_saw_is_an_error(ui):
    ui.load(WORKFLOW)
    ui.page.evaluate(LEAVE_ONLY_THE_STUDENT)
    ui.set_widget(FUSION, "guidance", 50)
    assert ui.run()["kind"] == "execution_error"
    said = ui.error()
    ui.shot("mistake_guidance_out_of_range")
    assert FUSION in said and "guidance is 50, but this student allows" in said, said
