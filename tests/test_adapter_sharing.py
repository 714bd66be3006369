"""Adapters pushed and loaded again: every loader gives the logits from before, and what could not is refused."""

import json
import logging
import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertConfig, Trainer, TrainingArguments

from hf_transfer_plugin.cli import main
from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.hub import adapter_checks, push_model, render_card, render_space
from hf_transfer_plugin.hub.folder import build_folder
from hf_transfer_plugin.recipes import finetune
from hf_transfer_plugin.record import TransferRecord
from tests.conftest import TINY
from tests.test_publish import here, hub  # noqa: F401

NAMES = ["bad", "so so", "good"]
TEXT = "a warm film and a dull cast"
REPO, BASE = "tester/reviews-lora", "tester/base"
ADAPTER = {
    "name": "lora",
    "peft_type": "LORA",
    "r": 16,
    "lora_alpha": 32,
    "layers": 3,
    "also_train": ["norms"],
    "target_modules": [f"encoder.layer.{i}.attention.self.{name}" for i in (9, 10, 11) for name in ("query", "value")],
    "modules_to_save": ["classifier", "output.LayerNorm"],
    "trainable_parameters": 12_345,
}


@pytest.fixture(autouse=True)
def quiet_peft():
    """Peft asks transformers for an attribute by its old name; that is not this project's to mend."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield


def record(**changes):
    values = {
        "task": "text-classification",
        "base_model": "org/bert",
        "base_model_id": "org/bert",
        "model_class": "BertForSequenceClassification",
        "problem_type": "single_label_classification",
        "class_names": NAMES,
        "strategy": {"name": "full"},
        "groups": [{"name": "embeddings", "parameters": 900_000}, {"name": "head", "parameters": 100_000}],
        "examples": [{"text": TEXT, "label": "good"}],
        "adapter": ADAPTER,
    }
    return TransferRecord(**{**values, **changes})


def adapt(folder, base, tokenizer, *, config=None, auto=AutoModelForSequenceClassification, seed=1, **labels):
    """A trained adapter on a saved base; in its file is what PEFT puts there."""
    torch.manual_seed(seed)
    labels = labels or {"num_labels": len(NAMES), "id2label": dict(enumerate(NAMES))}
    model = auto.from_pretrained(base, **labels, ignore_mismatched_sizes=True)
    config = config or LoraConfig(
        task_type="SEQ_CLS", r=2, target_modules=["query"], modules_to_save=["classifier", "pooler"]
    )
    model = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval()


def run_of(folder, **changes):
    """A record beside an adapter that was not made here."""
    record(**{"adapter": None, "base_model_id": BASE, **changes}).save(folder)
    return folder


def logits(model, tokenizer):
    with torch.no_grad():
        return model(**tokenizer(TEXT, return_tensors="pt")).logits


def pushed(run, tmp_path):
    """The folder as it would be pushed."""
    folder = tmp_path / "pushed"
    folder.mkdir()
    build_folder(TransferRecord.load(run), folder, REPO)
    return folder


def code_of(text):
    return re.search(r"```python\n(.*?)\n```", text, flags=re.DOTALL).group(1)


# The card, from the record alone


def test_the_card_tells_the_adapter():
    text = render_card(record(), model=REPO)
    data = ModelCard(text).data
    assert (data.library_name, data.base_model, data.base_model_relation) == ("peft", "org/bert", "adapter")
    assert data.tags == [
        "base_model:adapter:org/bert",
        "lora",
        "transformers",
        "hf-transfer-plugin",
        "transfer-learning",
    ]
    for told in (
        "with\n**LoRA** of hf-transfer-plugin.",
        "| method | LoRA |",
        "| size | rank 16, alpha 32 |",
        "| sits in | query, value of the upper 3 layers |",
        "| also learned, in full | classifier, norms |",
        "| trainable parameters | 12,345 of 1,000,000 (1.23%) |",
        "- The weights here are the adapter alone",
        "they answer with LABEL\\_0, or fail.",
        "- Load the base in float32, as above: one in 16 bits would round what the adapter learned",
    ):
        assert told in text, told
    assert "adapter\\_model" not in text  # no file is beside it
    assert code_of(text).splitlines()[3] == (
        'model = AutoPeftModelForSequenceClassification.from_pretrained("tester/reviews-lora", num_labels=3, '
        'id2label={0: "bad", 1: "so so", 2: "good"}, ignore_mismatched_sizes=True, dtype="float32")'
    )
    assert render_card(record(), model=REPO) == text


@pytest.mark.parametrize(
    ("adapter", "told"),
    [
        ({"name": "dora", "use_dora": True}, ["| method | DoRA |", "from\\_pretrained of Transformers leaves out"]),
        (
            {"name": "adalora", "r": None, "init_r": 12, "target_r": 8},
            ["rank at the start 12, mean rank at the end 8"],
        ),
        ({"target_modules": r".*(q|v)_proj", "layers": None}, ["| sits in | modules that match .\\*(q\\|v)\\_proj |"]),
        ({"target_modules": [f"m{i}" for i in range(13)], "layers": 1}, ["m9 and 3 more of the uppermost layer |"]),
        ({"name": "prompt", "target_modules": None, "num_virtual_tokens": 20}, ["learned tokens 20", "front of the"]),
        ({"name": None, "peft_type": "LOHA"}, ["| method | LOHA |"]),
        (
            {"name": "pissa", "saved_as": "LORA", "saved_rank": 32},
            ["with\n**PiSSA** of", "| method | PiSSA |", "| size | rank 16,", "| saved as | plain LoRA of rank 32 |"],
        ),
        (
            {"name": "adalora", "peft_type": "ADALORA", "r": None, "init_r": 12, "saved_as": "LORA", "saved_rank": 11},
            ["| size | rank at the start 12, alpha 32 |", "| saved as | plain LoRA of rank 11 at most |"],
        ),
        ({"name": "lora+", "ratio": 16.0}, ["rank 16, alpha 32, rate of B over that of A 16 |"]),
        (
            {"base_precision": "bfloat16"},
            ["in training | bfloat16 |", "trained over the base in bfloat16. Loaded in float32"],
        ),
        ({"base_precision": "4bit"}, ["in training | 4bit |", "answers may differ a little"]),
        ({"modules_to_save": [f"<b>{i}" for i in range(11)], "also_train": []}, ["&lt;b&gt;9, 1 more |"]),
    ],
)
def test_each_method_is_told_in_its_own_words(adapter, told):
    text = render_card(record(adapter={**ADAPTER, **adapter}))
    for words in told:
        assert words in text, words


def test_how_it_was_saved_is_told_only_where_that_differs(tmp_path):
    assert "saved as" not in render_card(record())
    assert "saved as" not in render_card(record(adapter={**ADAPTER, "saved_as": "LORA", "saved_rank": 16}))
    saved = {**ADAPTER, "name": "pissa", "saved_as": "LORA", "saved_rank": 32}
    (tmp_path / "model.safetensors").touch()
    text = render_card(record(adapter=saved), tmp_path / "README.md")  # merged, so there is no file of an adapter
    assert "saved as" not in text
    assert "| method | PiSSA |" in text


def test_a_record_without_an_adapter_says_nothing_of_one():
    text = render_card(record(adapter=None))
    assert "adapter" not in text
    assert ModelCard(text).data.library_name == "transformers"
    assert 'pipeline("text-classification", model=".")' in text


def test_a_base_without_an_id_is_not_named_to_the_hub():
    data = ModelCard(render_card(record(base_model="my-folder", base_model_id=None))).data.to_dict()
    assert data["library_name"] == "peft"
    assert "base_model" not in data
    assert "base_model_relation" not in data
    assert not [tag for tag in data["tags"] if tag.startswith("base_model")]


def test_a_strategy_beside_the_adapter_is_told():
    text = render_card(record(strategy={"name": "gradual-unfreezing"}))
    assert "**LoRA** and the strategy **gradual-unfreezing** of" in text
    assert ModelCard(text).data.tags[-1] == "gradual-unfreezing"
    assert "full" not in ModelCard(render_card(record())).data.tags


@pytest.mark.parametrize(
    ("files", "adapter", "whole"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], ADAPTER, False),
        (["adapter_config.json"], None, False),
        (["model.safetensors"], ADAPTER, True),
        (["model-00001-of-00002.safetensors"], ADAPTER, True),
        ([], ADAPTER, False),
        ([], None, True),
    ],
)
def test_what_lies_beside_the_card_decides_how_it_is_loaded(tmp_path, files, adapter, whole):
    for name in files:
        (tmp_path / name).write_bytes(b"x" * 2_500)
    made = record(adapter=adapter)
    text = render_card(made, tmp_path / "README.md")
    assert ("AutoPeftModel" not in text) is whole
    assert (ModelCard(text).data.library_name == "transformers") is whole
    assert ("## The merged adapter" in text) is (whole and adapter is not None)
    assert ("| size of adapter\\_model.safetensors | 2.5 kB |" in text) is (len(files) == 2)
    if whole and adapter:
        assert ModelCard(text).data.base_model_relation == "finetune"
        assert "it loads like any other model" in text
    made.save(tmp_path)
    assert render_card(TransferRecord.load(tmp_path)) == text  # the folder of the record counts as well


@pytest.mark.parametrize("task", ["summarization", "text-generation"])
def test_own_settings_for_writing_are_loaded_where_there_are_any(tmp_path, task):
    made = record(task=task, problem_type="", class_names=[], options={"causal": task == "text-generation"})
    assert "GenerationConfig" not in render_card(made, tmp_path / "README.md")
    (tmp_path / "generation_config.json").write_text("{}")
    text = render_card(made, tmp_path / "README.md")
    assert 'model.get_base_model().generation_config = GenerationConfig.from_pretrained(".")' in text
    assert "GenerationConfig" not in render_card(record(task="fill-mask"), tmp_path / "README.md")


# What is pushed


def test_the_folder_names_the_base_by_its_id_everywhere(tmp_path, model_folder, tokenizer):
    prompts = PromptTuningConfig(
        task_type="SEQ_CLS",
        num_virtual_tokens=2,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text="film",
        tokenizer_name_or_path=model_folder,
        modules_to_save=["classifier", "pooler"],
    )
    adapt(tmp_path / "run", model_folder, tokenizer, config=prompts)
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    (tmp_path / "run" / "adapter_config.json").write_text(json.dumps({**config, "more": [{"again": model_folder}]}))
    (tmp_path / "run" / "config.json").write_text("{}")
    folder = pushed(run_of(tmp_path / "run"), tmp_path)
    found = json.loads((folder / "adapter_config.json").read_text())
    assert found["base_model_name_or_path"] == found["tokenizer_name_or_path"] == BASE
    assert found["more"] == [{"again": BASE}]
    assert {**found, "base_model_name_or_path": 0, "tokenizer_name_or_path": 0, "more": 0} == {
        **config,
        "base_model_name_or_path": 0,
        "tokenizer_name_or_path": 0,
        "more": 0,
    }
    assert model_folder not in "".join(path.read_text() for path in folder.glob("*.json"))
    assert not (folder / "config.json").exists()
    text = (folder / "README.md").read_text()
    assert "| size | learned tokens 2 |" in text
    assert "prompt\\_tuning" in text


@pytest.mark.parametrize(("named", "kept"), [(BASE, "v1"), ("org/mirror", None)])
def test_the_revision_is_of_the_base_that_was_trained_on_alone(
    tmp_path, model_folder, tokenizer, monkeypatch, named, kept
):
    asked = []
    monkeypatch.setattr(adapter_checks, "_config_folder", lambda base, *revision: asked.append((base, revision[0])))
    monkeypatch.setattr(adapter_checks, "_head_shapes", lambda *_: ("bert.", {}, True))
    monkeypatch.setattr(adapter_checks, "_base_shapes", lambda *given: asked.append(given))
    adapt(tmp_path / "run", model_folder, tokenizer)
    file = tmp_path / "run" / "adapter_config.json"
    given = json.loads(file.read_text()) | {"base_model_name_or_path": named, "revision": "v1"}
    file.write_text(json.dumps(given))
    there = json.loads((pushed(run_of(tmp_path / "run"), tmp_path) / "adapter_config.json").read_text())
    assert (there["base_model_name_or_path"], there["revision"]) == (BASE, kept)
    assert asked == [(BASE, kept)] * 2


def test_a_path_in_a_nested_field_is_refused(tmp_path, model_folder, tokenizer):
    adapt(tmp_path / "run", model_folder, tokenizer)
    file = tmp_path / "run" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eva_config": {"cache": ["/home/jane/cache.pt"]}}))
    with pytest.raises(ValueError, match=r"adapter_config\.json holds a path of this machine \(`eva_config\.cache`"):
        pushed(run_of(tmp_path / "run"), tmp_path)


def test_a_config_without_a_base_gets_the_records(tmp_path, model_folder, tokenizer, monkeypatch):
    monkeypatch.chdir(model_folder)  # where an empty name would be a folder
    adapt(tmp_path / "run", model_folder, tokenizer)
    file = tmp_path / "run" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": None}))
    (tmp_path / "run" / "README.md").write_text("---\nlibrary_name: transformers\nlicense: mit\n---\n")
    folder = pushed(run_of(tmp_path / "run"), tmp_path)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == BASE
    data = ModelCard((folder / "README.md").read_text()).data
    assert (data.library_name, data.base_model, data.license) == ("peft", BASE, "mit")
    run_of(tmp_path / "run", base_model_id=None)
    with pytest.raises(ValueError, match="Name the base model"):
        build_folder(TransferRecord.load(tmp_path / "run"), folder, REPO)


@pytest.mark.parametrize("base", ["here", "models/base", "./base"])
def test_a_local_base_is_pushed_only_with_its_id(tmp_path, model_folder, tokenizer, monkeypatch, base):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_folder, tmp_path / base)
    adapt("run", base, tokenizer)
    with pytest.raises(ValueError, match="Name the base model: set `base_model_id` in transfer_record.json"):
        pushed(run_of(Path("run"), base_model_id=None), tmp_path)
    shutil.rmtree("pushed")
    run_of(Path("run"))
    found = json.loads((pushed("run", tmp_path) / "adapter_config.json").read_text())
    assert found["base_model_name_or_path"] == BASE


def test_weights_of_the_adapter_must_be_there(tmp_path, model_folder, tokenizer):
    adapt(tmp_path / "run", model_folder, tokenizer)
    (tmp_path / "run" / "adapter_model.safetensors").rename(tmp_path / "run" / "model.safetensors")
    with pytest.raises(ValueError, match="the weights of the adapter are missing"):
        pushed(run_of(tmp_path / "run"), tmp_path)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_a_start_taken_out_of_the_base_is_refused(tmp_path, model_folder, tokenizer, start):
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=2,
        lora_alpha=2,
        target_modules=["query"],
        modules_to_save=["classifier", "pooler"],
        init_lora_weights=start,
    )
    adapt(tmp_path / "run", model_folder, tokenizer, config=config)
    with pytest.raises(ValueError, match="each loading would change the base's weights anew(?s:.)*path_initial_model"):
        pushed(run_of(tmp_path / "run"), tmp_path)


# The head


def base_of(kind, folder, tokenizer):
    """A base without the head of the task, or with one for other classes."""
    torch.manual_seed(0)
    small = {"vocab_size": 120, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes = {**small, "intermediate_size": 32, "max_position_embeddings": 40}
    made = {
        "bert": lambda: transformers.BertModel(BertConfig(**TINY)),
        "masked": lambda: transformers.BertForMaskedLM(BertConfig(**TINY)),
        "two": lambda: transformers.BertForSequenceClassification(BertConfig(**TINY)),
        "three": lambda: transformers.BertForSequenceClassification(BertConfig(**TINY, num_labels=3)),
        "distilbert": lambda: transformers.DistilBertModel(
            transformers.DistilBertConfig(vocab_size=120, dim=16, n_layers=2, n_heads=2, hidden_dim=32)
        ),
        "roberta": lambda: transformers.RobertaModel(transformers.RobertaConfig(**sizes), add_pooling_layer=False),
        "deberta": lambda: transformers.DebertaV2Model(
            transformers.DebertaV2Config(**sizes, pooler_hidden_size=16, relative_attention=False)
        ),
        "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)),
    }
    made[kind]().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


TARGETS = {"distilbert": "q_lin", "deberta": "query_proj", "llama": "q_proj"}


def adapter_on(kind, tmp_path, tokenizer, *, modules=None, task_type=None):
    base = base_of(kind, tmp_path / "base", tokenizer)
    config = LoraConfig(task_type=task_type, r=2, target_modules=[TARGETS.get(kind, "query")], modules_to_save=modules)
    adapt(tmp_path / "run", base, tokenizer, config=config)
    return run_of(tmp_path / "run")


@pytest.mark.parametrize(
    ("kind", "modules", "task_type", "missing"),
    [
        ("bert", None, None, "classifier"),
        ("two", None, None, "classifier"),
        ("masked", None, "SEQ_CLS", "pooler"),
        ("distilbert", ["pre_classifier"], None, "classifier"),
        ("roberta", None, None, "classifier"),
        ("deberta", None, "SEQ_CLS", "pooler"),
        ("llama", None, None, "score"),
    ],
)
def test_an_adapter_without_its_head_is_refused(tmp_path, tokenizer, kind, modules, task_type, missing):
    run = adapter_on(kind, tmp_path, tokenizer, modules=modules, task_type=task_type)
    said = rf"holds no weights of {missing}, and .*random answers. .* with `modules_to_save=\['{missing}'\]`"
    with pytest.raises(ValueError, match=said):
        pushed(run, tmp_path)


@pytest.mark.parametrize(
    ("kind", "modules", "task_type"),
    [
        ("bert", None, "SEQ_CLS"),
        ("bert", ["classifier"], None),
        ("two", None, "SEQ_CLS"),
        ("three", None, None),  # the base brings it
        ("masked", ["pooler"], "SEQ_CLS"),
        ("distilbert", None, "SEQ_CLS"),  # to PEFT, `pre_classifier` ends like `classifier`
        ("roberta", None, "SEQ_CLS"),
        ("deberta", ["pooler"], "SEQ_CLS"),
        ("llama", None, "SEQ_CLS"),
    ],
)
def test_an_adapter_with_its_head_is_pushed(tmp_path, tokenizer, kind, modules, task_type, caplog):
    folder = pushed(adapter_on(kind, tmp_path, tokenizer, modules=modules, task_type=task_type), tmp_path)
    assert (folder / "adapter_model.safetensors").is_file()
    assert caplog.records == []


@pytest.mark.parametrize(("kind", "refused"), [("bert", True), ("two", True), ("three", False)])
def test_a_base_of_another_format_is_judged_by_its_config(tmp_path, tokenizer, kind, refused):
    run = adapter_on(kind, tmp_path, tokenizer)
    weights = tmp_path / "base" / "model.safetensors"
    torch.save(load_file(weights), tmp_path / "base" / "pytorch_model.bin")
    weights.unlink()
    if refused:
        with pytest.raises(ValueError, match="holds no weights of classifier"):
            pushed(run, tmp_path)
    else:
        assert pushed(run, tmp_path).is_dir()


def test_a_base_that_cannot_be_read_is_told(tmp_path, tokenizer, caplog):
    run = adapter_on("bert", tmp_path, tokenizer)
    shutil.rmtree(tmp_path / "base")
    with caplog.at_level(logging.WARNING):
        assert pushed(run, tmp_path).is_dir()
    assert "Could not look whether 'tester/base' has all weights that the adapter has not" in caplog.text


def test_a_head_taken_out_of_the_file_is_noticed(tmp_path, model_folder, tokenizer):
    adapt(tmp_path / "run", model_folder, tokenizer)
    file = tmp_path / "run" / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if "classifier.bias" not in name}, file)
    with pytest.raises(ValueError, match="holds no weights of classifier"):
        pushed(run_of(tmp_path / "run"), tmp_path)


def test_tasks_without_a_head_of_their_own_need_none(tmp_path, tokenizer):
    base = base_of("llama", tmp_path / "base", tokenizer)
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    auto = transformers.AutoModelForCausalLM
    adapt(tmp_path / "run", base, tokenizer, config=lora, auto=auto, dtype=torch.float32)
    run_of(tmp_path / "run", task="text-generation", problem_type="", class_names=[])
    assert "AutoPeftModelForCausalLM" in (pushed(tmp_path / "run", tmp_path) / "README.md").read_text()


# A whole run


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "reviews.csv"
    kinds = [("fine", "good"), ("dull", "so so"), ("poor", "bad")]
    file.write_text("text,label\n" + "".join(f"a {kinds[i % 3][0]} film {i},{kinds[i % 3][1]}\n" for i in range(60)))
    return str(file)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, model_folder, reviews, tokenizer):
    """A LoRA run of three classes on a local base, and the logits of the model that was trained."""
    folder, seen = tmp_path_factory.mktemp("trained") / "run", []
    save = Trainer.save_model

    def spy(self, *args, **kwargs):
        seen.append(logits(self.model.eval(), tokenizer))
        return save(self, *args, **kwargs)

    config = TransferConfig(model=model_folder, dataset=reviews, adapter="lora", base_model_id=BASE, license="mit")
    args = TrainingArguments(
        str(folder), max_steps=6, learning_rate=5e-2, report_to="none", use_cpu=True, save_strategy="no"
    )
    with pytest.MonkeyPatch.context() as patched, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        patched.setattr(Trainer, "save_model", spy)
        finetune(config, args)
    return folder, seen[-1]


def test_the_run_folder_of_an_adapter_loads_as_its_card_says(trained, tmp_path, capsys, tokenizer):
    folder, wanted = trained
    assert not (folder / "config.json").exists()
    run = Path(shutil.copytree(folder, tmp_path / "run"))
    first = (run / "README.md").read_text()
    assert main(["card", str(run)]) == 0
    assert (run / "README.md").read_text() == first
    assert main(["card", str(run), "--print", "--model", REPO]) == 0
    assert f'AutoPeftModelForSequenceClassification.from_pretrained("{REPO}"' in capsys.readouterr().out
    found = {}
    exec(code_of(first).replace('"."', repr(str(run))), found)  # noqa: S102
    assert torch.equal(logits(found["model"], tokenizer), wanted)
    assert set(found["model"].config.id2label.values()) == set(NAMES)
    assert "'label': 'so so'" in capsys.readouterr().out


def test_a_trained_run_is_pushed_with_the_trained_head(trained, tmp_path, model_folder):
    folder, _ = trained
    there = pushed(folder, tmp_path)
    weights = load_file(there / "adapter_model.safetensors")
    assert weights["base_model.model.classifier.weight"].shape == (3, 16)
    plain = AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=3)
    assert not torch.equal(weights["base_model.model.bert.pooler.dense.weight"], plain.bert.pooler.dense.weight)
    assert model_folder not in (there / "adapter_config.json").read_text()
    data = ModelCard((there / "README.md").read_text()).data
    assert (data.library_name, data.base_model, data.license) == ("peft", BASE, "mit")


# Over the Hub

LOADERS = {
    "the card": "exec(code)",
    "a pipeline of the model": "exec(code); model = pipeline('text-classification', model=model, tokenizer=tok).model",
    "a pipeline by its name": "model = pipeline('text-classification', model=repo, model_kwargs=named).model",
    "an auto class by its name": "model = AutoModelForSequenceClassification.from_pretrained(repo, **named)",
    "PEFT over an auto class": "base = AutoModelForSequenceClassification.from_pretrained(base, **named)\n"
    "model = PeftModel.from_pretrained(base, repo)",
    "the demo": "model = loading.load(settings, repo, 'AutoModelForSequenceClassification').model",
}
CHILD = r"""
import json, re, sys, warnings
import torch
from huggingface_hub import hf_hub_download
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

torch.set_num_threads(1)
warnings.filterwarnings("ignore")
repo, base, text, space, names = json.loads(sys.argv[1])
sys.path.insert(0, space)
import loading
from pathlib import Path

settings = loading.Settings.read(Path(space) / "demo.json")
card = Path(hf_hub_download(repo, "README.md")).read_text()
code = re.search(r"```python\n(.*?)\n```", card, flags=re.DOTALL).group(1)
named = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
named["ignore_mismatched_sizes"] = True
tok = AutoTokenizer.from_pretrained(repo)
found = {}
for name, lines in json.loads(sys.argv[2]).items():
    scope = dict(globals())
    exec(lines, scope)
    model = scope["model"].eval()
    with torch.no_grad():
        got = model(**tok(text, return_tensors="pt")).logits[0].tolist()
    found[name] = [got, [model.config.id2label[i] for i in range(len(names))]]
print(json.dumps(found))
"""


def loaded_elsewhere(hub, tmp_path, names, loaders=LOADERS):  # noqa: F811
    """What each loader gives in a process that knows the Hub alone."""
    space = render_space(record(class_names=names, base_model_id=BASE), tmp_path / "space", REPO)
    told = json.dumps([REPO, BASE, TEXT, str(space), names])
    done = hub.run(["-c", CHILD, told, json.dumps(loaders)], token=None)
    return json.loads(done.stdout.splitlines()[-1])


def push_base(hub, folder):  # noqa: F811
    hub.api().create_repo(BASE, exist_ok=True)
    hub.api().upload_folder(repo_id=BASE, folder_path=folder)


@pytest.mark.hub
def test_a_trained_run_answers_alike_before_and_after_the_hub(here, trained, tmp_path, model_folder):  # noqa: F811
    folder, wanted = trained
    push_base(here, model_folder)
    done = push_model(folder, REPO)
    assert "config.json" not in done.files
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md"} <= set(done.files)
    names = TransferRecord.load(folder).class_names
    for loader, (got, labels) in loaded_elsewhere(here, tmp_path, names).items():
        assert got == wanted[0].tolist(), loader
        assert labels == names, loader
    assert here.leaks() == []


@pytest.mark.hub
def test_a_base_with_a_head_for_other_classes(here, tmp_path, tokenizer):  # noqa: F811
    base = base_of("two", tmp_path / "base", tokenizer)
    push_base(here, base)
    lora = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    model = adapt(tmp_path / "run", base, tokenizer, config=lora)
    push_model(run_of(tmp_path / "run"), REPO)
    wanted = logits(model, tokenizer)[0].tolist()
    for loader, (got, _) in loaded_elsewhere(here, tmp_path, NAMES).items():
        assert got == wanted, loader


OTHERS = {  # task -> model class, auto class, what PEFT calls the task, the record's other fields
    "token-classification": ("BertModel", "AutoModelForTokenClassification", "TOKEN_CLS", {"class_names": NAMES}),
    "text-generation": ("LlamaForCausalLM", "AutoModelForCausalLM", "CAUSAL_LM", {}),
    "fill-mask": ("BertForMaskedLM", "AutoModelForMaskedLM", None, {}),
}
DEMO = """
loaded = loading.load(settings, repo, auto)
model = loaded.model
if loaded.as_base is None:
    base_logits = None
else:
    with loaded.as_base() as off, torch.no_grad():
        base_logits = off(**tok(text, return_tensors="pt")).logits[0].tolist()
print(json.dumps(base_logits))
"""


@pytest.mark.hub
@pytest.mark.parametrize("task", OTHERS)
def test_other_tasks_answer_alike_before_and_after_the_hub(here, tmp_path, tokenizer, task):  # noqa: F811
    kind, auto, told, fields = OTHERS[task]
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**TINY, pad_token_id=0) if "Llama" in kind else BertConfig(**TINY)
    base = getattr(transformers, kind)(config)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    push_base(here, tmp_path / "base")
    lora = LoraConfig(task_type=told, r=2, target_modules=["q_proj" if "Llama" in kind else "query"])
    names = fields.get("class_names", [])
    labels = {"num_labels": 3, "id2label": dict(enumerate(names))} if names else {"dtype": torch.float32}
    auto_class = getattr(transformers, auto)
    model = adapt(tmp_path / "run", str(tmp_path / "base"), tokenizer, config=lora, auto=auto_class, **labels)
    fields = {"task": task, "problem_type": "", "class_names": [], "model_class": kind, **fields}
    push_model(run_of(tmp_path / "run", **fields), REPO)
    space = render_space(record(base_model_id=BASE, **fields), tmp_path / "space", REPO)
    arguments = json.dumps([REPO, BASE, TEXT, str(space), names])
    lines = {"the card": LOADERS["the card"], "the demo": DEMO.replace("auto)", f"{auto!r})")}
    done = here.run(["-c", CHILD, arguments, json.dumps(lines)], token=None)
    *_, off, found = map(json.loads, done.stdout.splitlines()[-2:])
    for loader, (got, labels) in found.items():
        assert got == logits(model, tokenizer)[0].tolist(), loader
        assert labels == names
    if task == "token-classification":
        assert off is None  # the base has no tags
    else:
        assert off == logits(base.eval(), tokenizer)[0].tolist()


@pytest.mark.hub
def test_by_name_alone_a_pipeline_does_not_answer_with_wrong_classes_in_silence(here, trained, tmp_path, model_folder):  # noqa: F811
    push_base(here, model_folder)
    push_model(trained[0], REPO)
    code = f"from transformers import pipeline; print(pipeline('text-classification', model={REPO!r})({TEXT!r}))"
    done = here.run(code, token=None, check=False)
    assert done.returncode != 0  # the card says so
    assert not re.search("bad|so so|good", done.stdout)


@pytest.mark.hub
@pytest.mark.parametrize("base_here", [True, False], ids=["local", "on the Hub"])
def test_what_would_answer_at_random_is_refused_before_anything_is_sent(here, tmp_path, tokenizer, base_here):  # noqa: F811
    base = base_of("masked", tmp_path / "base", tokenizer)
    push_base(here, base)
    adapt(tmp_path / "run", base, tokenizer, config=LoraConfig(r=2, target_modules=["query"]))
    if not base_here:
        shutil.rmtree(base)
    sent = len(here.requests("POST"))
    with pytest.raises(ValueError, match="holds no weights of classifier, pooler, and "):
        push_model(run_of(tmp_path / "run"), REPO)
    assert len(here.requests("POST")) == sent
    assert here.repo_ids() == [BASE]
