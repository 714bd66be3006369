"""The demo of an adapter: on which base, what answers with it off, and what it refuses to show."""

import json
import re
import shutil
from types import SimpleNamespace

import httpx
import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import RemoteEntryNotFoundError
from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertModel,
    GenerationConfig,
)

from hf_transfer_plugin.cli import main as cli
from hf_transfer_plugin.hub import demo, render_space, run_demo
from hf_transfer_plugin.hub.snippets import getting_started
from hf_transfer_plugin.record import TransferRecord
from tests.conftest import TINY
from tests.test_demo import quiet_peft, record, settings_of, space  # noqa: F401
from tests.test_demo_texts import answer_of, encoder, text_record
from tests.test_demo_writing import writer, writer_tokenizer  # noqa: F401

pytestmark = pytest.mark.slow

NAMES = ["bad", "so so", "good"]
LABELS = {"num_labels": 3, "id2label": dict(enumerate(NAMES))}
TEXT = "a fine film"
NO_HEAD = "With the adapter off, the base model has no trained output layer for these answers"


def adapt(folder, base, auto, tokenizer, config, std=0.5, **labels):
    """What was trained; a change of the adapter's weights that is seen in the answers."""
    torch.manual_seed(1)
    model = auto.from_pretrained(base, **labels)
    with quiet_peft():
        model = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=std)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder), model.eval()


def classes(folder, base, tokenizer, dtype="auto", **changes):
    given = {"task_type": "SEQ_CLS", "r": 2, "target_modules": ["query"], "modules_to_save": ["classifier", "pooler"]}
    config = LoraConfig(**{**given, **changes})
    return adapt(folder, base, AutoModelForSequenceClassification, tokenizer, config, **LABELS, dtype=dtype)


def logits(model, tokenizer, text=TEXT):
    with torch.no_grad():
        return model(**tokenizer(text, return_tensors="pt")).logits


def about(space, tmp_path, loaded, **changes):  # noqa: F811
    settings = settings_of(space, tmp_path / "space")
    row = space.app.TASKS[settings.task, settings.form]
    return space.page.about(settings, row, loaded, settings.model)


def test_three_classes_on_a_base_without_a_head(space, tmp_path, tokenizer, model_folder):  # noqa: F811
    folder, model = classes(tmp_path / "adapter", model_folder, tokenizer)
    made = record(class_names=NAMES, base_model_id="me/base", adapter={"name": "lora"})
    loaded, answer = answer_of(space, tmp_path, folder, made)
    assert torch.equal(logits(loaded.model, tokenizer), logits(model, tokenizer))
    assert list(answer(TEXT)) == NAMES
    assert loaded.as_base is None
    told = about(space, tmp_path, loaded)
    assert "Made by transfer learning from [me/base]" in told
    assert "Its weights are an adapter (lora) on the base model, which stays as it was.\n" + NO_HEAD in told


def test_words_on_a_base_without_a_head(space, tmp_path, tokenizer, model_folder):  # noqa: F811
    config = LoraConfig(task_type="TOKEN_CLS", r=2, target_modules=["query"])
    auto = AutoModelForTokenClassification
    folder, model = adapt(tmp_path / "adapter", model_folder, auto, tokenizer, config, **LABELS)
    made = text_record("token-classification", class_names=NAMES)
    loaded, _ = answer_of(space, tmp_path, folder, made)
    assert torch.equal(logits(loaded.model, tokenizer), logits(model, tokenizer))
    assert loaded.as_base is None
    assert NO_HEAD in about(space, tmp_path, loaded)


def test_guesses_are_compared_with_the_adapter_off(space, tmp_path, tokenizer):  # noqa: F811
    base = encoder(tmp_path / "base", tokenizer, "fill-mask")
    folder, model = adapt(
        tmp_path / "adapter", base, AutoModelForMaskedLM, tokenizer, LoraConfig(r=2, target_modules=["query"]), std=3.0
    )
    loaded, answer = answer_of(space, tmp_path, folder, text_record("fill-mask", adapter={"name": "lora"}))
    assert torch.equal(logits(loaded.model, tokenizer), logits(model, tokenizer))
    plain = AutoModelForMaskedLM.from_pretrained(base)
    with loaded.as_base() as off:
        assert torch.equal(logits(off, tokenizer), logits(plain, tokenizer))
    assert torch.equal(logits(loaded.model, tokenizer), logits(model, tokenizer))  # it is on again
    ours, other = answer("a [MASK] film", True)
    whole, _ = answer_of(space, tmp_path / "whole", base, text_record("fill-mask"))
    found = space.mask_input.ask(whole, whole.model, space.mask_input.read(whole, ["a [MASK] film"])[0])
    assert other == found != ours
    assert "*Compare with the base model* asks the same model with the adapter off." in about(space, tmp_path, loaded)


@pytest.mark.parametrize("kind", ["lora", "prompt", "prefix"])
def test_continuations_are_compared_with_the_adapter_off(space, tmp_path, writer_tokenizer, kind):  # noqa: F811
    base = writer(tmp_path / "base", writer_tokenizer)
    config = {
        "lora": LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"]),
        "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        "prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    }[kind]
    folder, model = adapt(tmp_path / "adapter", base, AutoModelForCausalLM, writer_tokenizer, config, std=2.0)
    GenerationConfig(max_new_tokens=7, eos_token_id=1, pad_token_id=0).save_pretrained(folder)
    loaded, answer = answer_of(space, tmp_path, folder, text_record("text-generation"))
    assert torch.equal(logits(loaded.model, writer_tokenizer), logits(model, writer_tokenizer))
    ids = writer_tokenizer(TEXT, return_tensors="pt").input_ids
    plain = AutoModelForCausalLM.from_pretrained(base)
    with loaded.as_base() as off:
        assert torch.equal(logits(off, writer_tokenizer), logits(plain, writer_tokenizer))
    *_, (ours, other) = answer(TEXT, True)
    for written, by in ((ours, model), (other, plain)):
        wanted = by.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=7, do_sample=False, pad_token_id=0
        )
        new = wanted[0][ids.shape[1] :] if len(wanted[0]) > ids.shape[1] else wanted[0]
        assert written == writer_tokenizer.decode(new, skip_special_tokens=True)
    assert ours != other
    room = {"lora": 128, "prompt": 125, "prefix": 125}[kind]
    assert loaded.max_tokens == room


PROMPTS = {"prompt": PromptTuningConfig, "p-tuning": PromptEncoderConfig, "prefix": PrefixTuningConfig}


HEADS = {
    "text-classification": (AutoModelForSequenceClassification, "SEQ_CLS"),
    "token-classification": (AutoModelForTokenClassification, "TOKEN_CLS"),
    "question-answering": (AutoModelForQuestionAnswering, "QUESTION_ANS"),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("task", "kind"), [*[("text-classification", kind) for kind in PROMPTS], *[(task, "prefix") for task in HEADS][1:]]
)
def test_a_trained_head_does_not_answer_for_the_base(space, tmp_path, tokenizer, task, kind):  # noqa: F811
    """The base has a head for these very classes, so that an adapter of another method is compared with it."""
    auto, told = HEADS[task]
    labels = {} if task == "question-answering" else LABELS
    torch.manual_seed(0)
    auto.from_config(BertConfig(**TINY, **labels)).save_pretrained(tmp_path / "base")
    config = PROMPTS[kind](task_type=told, num_virtual_tokens=3)
    folder, model = adapt(tmp_path / "adapter", str(tmp_path / "base"), auto, tokenizer, config, **labels)
    single = {"problem_type": "single_label_classification"} if task == "text-classification" else {}
    made = text_record(task, class_names=NAMES if labels else [], adapter={"name": kind}, **single)
    loaded, answer = answer_of(space, tmp_path, folder, made)
    assert torch.equal(first_output(loaded.model, tokenizer), first_output(model, tokenizer))
    assert loaded.as_base is None
    assert "the output layer that was trained with it would still answer" in about(space, tmp_path, loaded)
    assert answer(*[TEXT] * len(settings_of(space, tmp_path / "space").inputs)) is not None
    lora = LoraConfig(task_type=told, r=2, target_modules=["query"])
    folder, _ = adapt(tmp_path / "lora", str(tmp_path / "base"), auto, tokenizer, lora, **labels)
    assert answer_of(space, tmp_path, folder, made)[0].as_base is not None


@pytest.mark.parametrize("task", ["token-classification", "question-answering"])
@pytest.mark.parametrize("kind", ["prompt", "p-tuning"])
def test_a_prompt_that_moves_the_places_of_answers_is_refused(space, tmp_path, tokenizer, task, kind):  # noqa: F811
    auto, told = HEADS[task]
    labels = {} if task == "question-answering" else LABELS
    auto.from_config(BertConfig(**TINY, **labels)).save_pretrained(tmp_path / "base")
    config = PROMPTS[kind](task_type=told, num_virtual_tokens=3)
    folder, _ = adapt(tmp_path / "adapter", str(tmp_path / "base"), auto, tokenizer, config, **labels)
    with pytest.raises(space.loading.DemoError, match="moves every token to another place than the answers name. Tra"):
        answer_of(space, tmp_path, folder, text_record(task, class_names=NAMES if labels else []))


@pytest.mark.parametrize("kind", PROMPTS)
def test_summaries_are_compared_with_the_prompt_off(space, tmp_path, writer_tokenizer, kind):  # noqa: F811
    base = writer(tmp_path / "base", writer_tokenizer, "t5")
    config = PROMPTS[kind](task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3)
    folder, model = adapt(tmp_path / "adapter", base, AutoModelForSeq2SeqLM, writer_tokenizer, config, std=9.0)
    GenerationConfig.from_pretrained(base).save_pretrained(folder)
    loaded, answer = answer_of(space, tmp_path, folder, text_record("summarization"))
    ids = writer_tokenizer(TEXT, return_tensors="pt").input_ids
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": ids}
    plain = AutoModelForSeq2SeqLM.from_pretrained(base).eval()
    with torch.no_grad(), loaded.as_base() as off:
        assert torch.equal(off(**given).logits, plain(**given).logits)
        assert not torch.equal(model(**given).logits, plain(**given).logits)
    *_, (ours, other) = answer(TEXT, True)
    _, alone = answer_of(space, tmp_path / "whole", base, text_record("summarization"))
    *_, wanted = alone(TEXT)
    assert other == wanted
    assert isinstance(ours, str)


def first_output(model, tokenizer):
    with torch.no_grad():
        return model(**tokenizer(TEXT, return_tensors="pt"))[0]


@pytest.mark.parametrize("missing", ["config", "file"])
def test_an_adapter_without_its_head_is_not_shown(space, tmp_path, tokenizer, model_folder, missing):  # noqa: F811
    folder, _ = classes(tmp_path / "adapter", model_folder, tokenizer, task_type=None, modules_to_save=None)
    if missing == "file":
        folder, _ = classes(tmp_path / "adapter", model_folder, tokenizer)
        file = tmp_path / "adapter" / "adapter_model.safetensors"
        save_file({name: value for name, value in load_file(file).items() if "classifier" not in name}, file)
    with pytest.raises(space.loading.DemoError, match="the adapter holds no weights of classifier, and its base has"):
        answer_of(space, tmp_path, folder, record(class_names=NAMES))


@pytest.mark.parametrize("kind", ["pickle", "hub", "damaged"])
def test_weights_are_read_from_safetensors_alone(space, tmp_path, tokenizer, model_folder, monkeypatch, kind):  # noqa: F811
    folder, model = classes(tmp_path / "adapter", model_folder, tokenizer)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    reason = "it has no adapter_model.safetensors. Save the adapter again .* pickles \\(.bin\\) are not read"
    if kind == "damaged":
        file.write_bytes(file.read_bytes()[:100])
        reason = "its adapter_model.safetensors is damaged: .* Copy or save it again"
    else:
        torch.save(load_file(file), file.with_suffix(".bin"))
        file.unlink()
    if kind == "hub":

        def missing(model, name):
            raise RemoteEntryNotFoundError(f"404 {model} {name}", response=httpx.Response(404, request=asked))

        asked = httpx.Request("GET", "https://hub")
        monkeypatch.setattr(space.adapter, "hf_hub_download", missing)
        with pytest.raises(ValueError, match=reason):
            space.adapter.weights_of("me/adapter")
        return
    with pytest.raises(space.loading.DemoError, match=reason):
        answer_of(space, tmp_path, folder, record(class_names=NAMES))


def test_a_start_taken_out_of_the_base_is_not_compared(space, tmp_path, tokenizer):  # noqa: F811
    """What PEFT does with it at loading: with the adapter on it answers as trained, with it off as no model."""
    base = encoder(tmp_path / "base", tokenizer, "fill-mask")
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["query"], init_lora_weights="pissa")
    folder, model = adapt(tmp_path / "adapter", base, AutoModelForMaskedLM, tokenizer, config)
    loaded, _ = answer_of(space, tmp_path, folder, text_record("fill-mask"))
    torch.testing.assert_close(logits(loaded.model, tokenizer), logits(model, tokenizer))
    assert loaded.as_base is None
    assert "This adapter changed the base model's own weights" in about(space, tmp_path, loaded)
    plain = logits(AutoModelForMaskedLM.from_pretrained(base), tokenizer)
    with space.adapter.switched_off(loaded.model) as off:
        assert (logits(off, tokenizer) - plain).abs().max() > 1e-2


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "4bit"])
def test_a_base_of_few_bits_is_loaded_in_32(space, tmp_path, tokenizer, precision):  # noqa: F811
    torch.manual_seed(0)
    BertModel(BertConfig(**TINY)).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    folder, _ = classes(tmp_path / "adapter", str(tmp_path / "base"), tokenizer)
    made = record(class_names=NAMES, adapter={"name": "lora", "base_precision": precision})
    loaded, _ = answer_of(space, tmp_path, folder, made)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert f"In training the base was held in {precision}; here it is in float32." in about(space, tmp_path, loaded)


def test_a_head_of_32_bits_is_not_rounded_to_the_16_of_its_base(space, tmp_path, tokenizer):  # noqa: F811
    torch.manual_seed(0)
    BertModel(BertConfig(**TINY)).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    folder, model = classes(tmp_path / "adapter", str(tmp_path / "base"), tokenizer, dtype=torch.float32)
    made = record(class_names=NAMES)
    loaded, _ = answer_of(space, tmp_path, folder, made)
    assert torch.equal(logits(loaded.model, tokenizer), logits(model, tokenizer))
    found = {}
    exec(getting_started(made, folder, adapter=True).partition("tokenizer =")[0], found)  # noqa: S102
    assert torch.equal(logits(found["model"].eval(), tokenizer), logits(model, tokenizer))
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: value.to(torch.bfloat16) for name, value in load_file(file).items()}, file)
    short, _ = answer_of(space, tmp_path / "short", folder, made)  # then nothing is lost in the base's own precision
    assert torch.bfloat16 in {parameter.dtype for parameter in short.model.parameters()}


@pytest.mark.parametrize(
    ("named", "given", "known", "found"),
    [
        ("org/base", None, None, "org/base"),
        ("org/base", None, "me/other", "org/base"),  # another adapter than the page was written for
        ("/gone/base", None, "me/base", "me/base"),
        ("C:\\gone\\base", None, "me/base", "me/base"),
        ("HERE", None, "me/base", "HERE"),
        ("/gone/base", "HERE", "me/base", "HERE"),
        ("/gone/base", "org/base", None, "org/base"),
        (None, None, "me/base", "me/base"),
        ("/gone/base", None, None, ValueError),
        ("org/base", "/gone/base", "me/base", ValueError),
    ],
)
def test_the_base_is_found(space, tmp_path, named, given, known, found):  # noqa: F811
    named, given, found = (str(tmp_path) if one == "HERE" else one for one in (named, given, found))
    LoraConfig(base_model_name_or_path=named).save_pretrained(tmp_path)
    if found is ValueError:
        with pytest.raises(ValueError, match="its base '/gone/base' is not here. Name it with `--base FOLDER_OR_ID`"):
            space.adapter.base_of(str(tmp_path), given, known)
    else:
        assert space.adapter.base_of(str(tmp_path), given, known) == found


def of_two_revisions(tmp_path, monkeypatch, tokenizer):
    """The cache of a repository with `main` and `v1`; the weights of each."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "cache" / "models--me--base"
    (repository / "refs").mkdir(parents=True)
    for seed, name in enumerate(("main", "v1")):
        commit = str(seed) * 40
        (repository / "refs" / name).write_text(commit)
        shutil.copytree(encoder(tmp_path / name, tokenizer, "fill-mask", seed=seed), repository / "snapshots" / commit)
    return [AutoModelForMaskedLM.from_pretrained(tmp_path / name).eval() for name in ("main", "v1")]


def test_the_base_is_loaded_as_of_the_revision_that_was_trained_on(space, tmp_path, tokenizer, monkeypatch):  # noqa: F811
    main, first = of_two_revisions(tmp_path, monkeypatch, tokenizer)
    config = LoraConfig(r=2, target_modules=["query"], revision="v1")
    folder, model = adapt(tmp_path / "adapter", str(tmp_path / "v1"), AutoModelForMaskedLM, tokenizer, config)
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "me/base"}))
    made = text_record("fill-mask", model_class="BertForMaskedLM")
    loaded, _ = answer_of(space, tmp_path, folder, made)
    assert torch.equal(logits(loaded.model, tokenizer), logits(model, tokenizer))
    with loaded.as_base() as off:
        assert torch.equal(logits(off, tokenizer), logits(first, tokenizer))
        assert not torch.equal(logits(off, tokenizer), logits(main, tokenizer))
    assert space.adapter.revision_of(folder, "me/base") == "v1"
    assert space.adapter.revision_of(folder, "me/other") == "main"  # which has no v1 of this one
    found = {}
    exec(getting_started(made, folder, adapter=True).partition("tokenizer =")[0], found)  # noqa: S102
    assert torch.equal(logits(found["model"].eval(), tokenizer), logits(model, tokenizer))


def started(monkeypatch):
    """Commands of the apps, which are not run."""
    commands = []

    def popen(command, cwd):
        commands.append(command)
        return SimpleNamespace(wait=lambda *_: 0, terminate=lambda: None)

    monkeypatch.setattr(demo.subprocess, "Popen", popen)
    return commands


@pytest.mark.parametrize("given", ["base", "org/base"])
def test_the_command_passes_the_base_on(tmp_path, monkeypatch, given):
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    LoraConfig(base_model_name_or_path="/gone/base").save_pretrained("run")
    record(base_model_id="me/base").save("run")
    commands = started(monkeypatch)
    assert cli(["demo", "run", "--base", given, "--no_browser"]) == 0
    assert commands[0][4:] == ["--base", str(tmp_path / "base") if given == "base" else given]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ([], "`base` names the base of an adapter, but 'run' holds no adapter_config.json. Leave it out."),
        (["--output_dir", "space"], "Leave `--output_dir` out, or give `--base` to the app.py that is written."),
    ],
)
def test_a_base_without_an_adapter_served_here_is_refused(tmp_path, monkeypatch, capsys, more, reason):
    monkeypatch.chdir(tmp_path)
    record().save("run")
    assert cli(["demo", "run", "--base", "me/base", *more]) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("named", "known", "given"),
    [("base", None, "HERE"), ("./base", "me/base", "HERE"), ("/gone", "me/base", "me/base"), ("org/base", None, None)],
)
def test_a_demo_here_names_the_base_for_the_app_elsewhere(tmp_path, monkeypatch, named, known, given):
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    LoraConfig(base_model_name_or_path=named).save_pretrained("run")
    record(base_model_id=known).save("run")
    commands = started(monkeypatch)
    assert run_demo("run") == 0
    wanted = ["--base", str(tmp_path / "base") if given == "HERE" else given] if given else []
    assert commands[0][4:] == wanted
    assert commands[0][3] == str(tmp_path / "run")


def test_the_page_knows_method_and_precision_and_the_space_has_peft(tmp_path):
    made = record(adapter={"name": "dora", "r": 16, "base_precision": "bfloat16", "target_modules": ["x"]})
    folder = render_space(made, tmp_path, "me/model")
    settings = json.loads((folder / "demo.json").read_text())
    assert settings["adapter"] == {"name": "dora", "base_precision": "bfloat16"}
    assert re.search(r"^peft==\d", (folder / "requirements.txt").read_text(), flags=re.MULTILINE)
    again = TransferRecord(**{**vars(made), "adapter": None})
    assert json.loads((render_space(again, tmp_path, "me/model") / "demo.json").read_text())["adapter"] == {}
