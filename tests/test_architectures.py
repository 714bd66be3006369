"""Forty of the architectures of `benchmarks/architecture_survey.py`: every task and every rule of discovery."""

import pytest
import torch

from benchmarks.architecture_checks import check_head, check_order, check_partition, check_thaw
from benchmarks.architecture_survey import TASKS, find_groups, listed_classes, running_model
from hf_transfer_plugin import LayerGroup, LayerGroups

LARGEST, STAGES, ENCODER_DECODER = "largest list of blocks", "stages of", "encoder before decoder"
TOWERS, PARTS, SHARED = "towers in the order", "parts of a layer", "one block for all layers"
SIDE_BY_SIDE = "two towers side by side"
CHOSEN = {
    "AlbertForSequenceClassification": SHARED,
    "BertForSequenceClassification": LARGEST,
    "DebertaV2ForTokenClassification": LARGEST,
    "XLMForSequenceClassification": PARTS,
    "FlaubertForTokenClassification": PARTS,
    "GPT2ForSequenceClassification": LARGEST,
    "LlamaForSequenceClassification": LARGEST,
    "BartForSequenceClassification": ENCODER_DECODER,
    "RobertaForQuestionAnswering": LARGEST,
    "T5ForQuestionAnswering": ENCODER_DECODER,
    "LayoutLMv3ForTokenClassification": LARGEST,
    "SqueezeBertForMaskedLM": LARGEST,
    "BertForMaskedLM": LARGEST,
    "XLMRobertaForMaskedLM": LARGEST,
    "FunnelForMaskedLM": "",
    "GPT2LMHeadModel": LARGEST,
    "LlamaForCausalLM": LARGEST,
    "MixtralForCausalLM": LARGEST,
    "MambaForCausalLM": LARGEST,
    "JambaForCausalLM": LARGEST,
    "T5ForConditionalGeneration": ENCODER_DECODER,
    "FSMTForConditionalGeneration": ENCODER_DECODER,
    "ViTForImageClassification": LARGEST,
    "ResNetForImageClassification": STAGES,
    "SwinForImageClassification": STAGES,
    "CvtForImageClassification": STAGES,
    "MobileNetV2ForImageClassification": LARGEST,
    "CLIPForImageClassification": LARGEST,
    "SegformerForSemanticSegmentation": "",
    "DetrForObjectDetection": "detector",
    "YolosForObjectDetection": LARGEST,
    "ASTForAudioClassification": LARGEST,
    "Wav2Vec2ForSequenceClassification": LARGEST,
    "HubertForCTC": LARGEST,
    "WhisperForConditionalGeneration": ENCODER_DECODER,
    "SpeechT5ForSpeechToText": ENCODER_DECODER,
    "LlavaForConditionalGeneration": TOWERS,
    "Qwen2VLForConditionalGeneration": TOWERS,
    "Blip2ForConditionalGeneration": TOWERS,
    "VisionEncoderDecoderModel": ENCODER_DECODER,
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", CHOSEN)
def test_groups_of_an_architecture_hold(name):
    model, inputs, stage, reasons = running_model(name, listed_classes()[name][0])
    assert stage == "runs", reasons
    groups, verified_by = find_groups(model, inputs)
    assert verified_by != "nothing"
    assert groups.rule.startswith(CHOSEN[name])
    assert check_partition(model, groups) == []
    assert check_order(model, groups, inputs) == []
    assert check_head(model, groups) == []
    assert check_thaw(model, groups, inputs) == []


def test_the_chosen_cover_every_task_and_rule():
    classes = listed_classes()
    assert {task for name in CHOSEN for task in classes[name][1]} == set(TASKS)
    assert {LARGEST, STAGES, ENCODER_DECODER, TOWERS, PARTS, SHARED} <= set(CHOSEN.values())
    assert len(CHOSEN) == 40


@pytest.fixture
def grouped():
    model, inputs, _, _ = running_model("BertForSequenceClassification", "bert")
    return model, inputs, find_groups(model, inputs)[0]


def regrouped(model, groups, change):
    """The groups with `change(number of group, name of parameter)` as each parameter's group."""
    members = [[] for _ in groups]
    for number, group in enumerate(groups):
        for name in group.parameters:
            members[change(number, name)].append(name)
    named = [LayerGroup(group.name, tuple(names)) for group, names in zip(groups, members, strict=True)]
    return LayerGroups(named, model, rule=groups.rule, verified=True)


def test_the_check_of_order_sees_swapped_blocks_and_a_strayed_parameter(grouped):
    model, inputs, groups = grouped
    swapped = regrouped(model, groups, lambda i, name: {1: 2, 2: 1}.get(i, i))
    assert "is first read after" in check_order(model, swapped, inputs)[0]
    strayed = regrouped(model, groups, lambda i, name: 3 if "layer.0.output.dense.bias" in name else i)
    assert "layer.0.output.dense.bias" in " ".join(check_order(model, strayed, inputs))


def test_the_check_of_the_head_sees_a_classifier_below_and_a_block_above(grouped):
    model, _, groups = grouped
    low = regrouped(model, groups, lambda i, name: 3 if name.startswith("classifier") else i)
    assert "is newly initialised but lies below" in check_head(model, low)[0]
    high = regrouped(model, groups, lambda i, name: 4 if "layer.2" in name else i)
    assert "of the base model lies in the head" in check_head(model, high)[0]


def test_the_check_of_thawing_sees_a_group_that_gets_no_gradient(grouped):
    model, inputs, groups = grouped
    real = model.bert.encoder.layer[1].forward
    model.bert.encoder.layer[1].forward = lambda *args, **kwargs: real(*args, **kwargs).detach()
    faults = check_thaw(model, groups, inputs)
    assert faults == [f"thaw: no gradient reaches {name}" for name in ("embeddings", "layer.0", "layer.1")]


def test_the_check_of_thawing_sees_a_parameter_that_moves_beside_its_group(grouped, monkeypatch):
    model, inputs, groups = grouped
    step = torch.optim.SGD.step

    def careless(optimizer):
        step(optimizer)
        with torch.no_grad():
            model.classifier.bias += 1

    monkeypatch.setattr(torch.optim.SGD, "step", careless)
    assert "moves or stays" in check_thaw(model, groups, inputs)[0]
