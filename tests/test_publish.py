"""Pushing a run to a Hub over real HTTP: what is there afterwards, what is refused, and every fault on the way."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
from huggingface_hub import HfApi, ModelCard
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, TrainingArguments, pipeline

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.hub import HubError, client, publish, push_model, push_space, render_space
from hf_transfer_plugin.recipes import finetune
from hf_transfer_plugin.record import TransferRecord
from tests.local_hub import XET_AVAILABLE, LocalHub, online

pytestmark = pytest.mark.hub
PUBLISHED = {
    "README.md",
    "config.json",
    "model.safetensors",
    "schedule.png",
    "reliability.png",
    "confusion.png",
    "tokenizer.json",
    "tokenizer_config.json",
    "transfer_record.json",
}
LEGS = [False, pytest.param(True, marks=pytest.mark.skipif(not XET_AVAILABLE, reason="hf_xet is not installed"))]
REPO = "tester/reviews"
TEXT = "a warm film"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model_folder):
    """A run folder with everything in it that must not be published."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    data = tmp_path_factory.mktemp("data") / "reviews.csv"
    data.write_text("text,label\n" + "".join(f"a {'fine' if i % 2 else 'dull'} film {i},{i % 2}\n" for i in range(40)))
    config = TransferConfig(
        model=model_folder, dataset=str(data), base_model_id="tester/base", class_names=["bad", "good"], license="mit"
    )
    args = TrainingArguments(
        str(folder), max_steps=4, save_steps=2, save_strategy="steps", report_to="none", use_cpu=True
    )
    finetune(config, args)
    for name in ("training_args.bin", "optimizer.pt", ".env", "notes.txt", "secret.json"):
        (folder / name).write_text("HF_TOKEN=hf_" + "a" * 34)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy that a test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def hub(tmp_path):
    with LocalHub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def here(hub, monkeypatch, tmp_path):
    """The client of this process talks to the local Hub, and does not wait between tries."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
    files = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr(huggingface_hub.constants, "AGENT_HARNESSES_PATH", str(tmp_path / "agents.json"))
    monkeypatch.setenv("HF_TOKEN", hub.tokens["writer"])
    monkeypatch.setattr(client, "WAITS", (0.0,) * 4)
    with online():
        yield hub


def command(hub, *words, **options):
    return hub.run(["-m", "hf_transfer_plugin", *words], check=False, **options)


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def message(done):
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error: ") == len(done.stderr.strip().splitlines()), done.stderr
    return done.stderr


@pytest.mark.parametrize("xet", LEGS)
def test_from_the_command_line_to_the_hub_and_back(hub, run, xet):
    before = contents(run)
    done = command(hub, "push", run, REPO, xet=xet)
    assert done.returncode == 0, done.stderr
    assert f"The model is at {hub.endpoint}/{REPO}" in done.stdout
    assert "Not pushed: .env, notes.txt, optimizer.pt, secret.json, training_args.bin." in done.stdout
    assert contents(run) == before
    there = hub.files(REPO)
    assert set(there) - {".gitattributes"} == PUBLISHED
    for name in PUBLISHED - {"README.md"}:
        assert there[name] == before[name]
    assert len(hub.commits(REPO)) == 2
    again = command(hub, "push", run, REPO, xet=xet)
    assert again.returncode == 0, again.stderr
    assert len(hub.commits(REPO)) == 2
    code = re.search(r"```python\n(.*?)\n```", there["README.md"].decode(), flags=re.DOTALL).group(1)
    assert f'model="{REPO}"' in code
    asked = f"import json\nprint(json.dumps(classify({TEXT!r}, top_k=None)))"
    answer = json.loads(hub.run(f"{code}\n{asked}", xet=xet, token=None).stdout.splitlines()[-1])
    expected = pipeline("text-classification", model=str(run))(TEXT, top_k=None)
    assert {a["label"] for a in answer} == {"bad", "good"}
    for one, other in zip(answer, expected, strict=True):
        assert one["label"] == other["label"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-6)
    assert hub.leaks() == []


def test_the_card_on_the_hub_says_what_the_hub_reads(here, run):
    pushed = push_model(run, REPO)
    data = ModelCard(here.files(REPO)["README.md"].decode()).data
    assert (data.pipeline_tag, data.base_model, data.license) == ("text-classification", "tester/base", "mit")
    assert pushed.commit == here.commits(REPO)[0].id
    assert set(pushed.files) == PUBLISHED
    assert HfApi(endpoint=here.endpoint).model_info(REPO).pipeline_tag == "text-classification"


def test_private_branch_and_existing_repository(here, run):
    api = here.api()
    push_model(run, REPO, private=True)
    assert api.model_info(REPO).private
    first = here.commits(REPO)
    pushed = push_model(run, REPO, revision="second-try")
    assert here.commits(REPO) == first
    assert set(here.files(REPO, revision="second-try")) >= PUBLISHED
    assert pushed.pull_request is None
    with pytest.raises(HubError, match="no such repository or revision, or this token may not see it"):
        client.call("look", here.api("other").model_info, REPO)


def test_a_repeated_pull_request_is_the_same_one(here, run):
    here.api().create_repo(REPO)
    first = push_model(run, REPO, create_pr=True)
    assert first.pull_request.endswith("/discussions/1")
    assert set(here.files(REPO)) <= {".gitattributes"}
    second = push_model(run, REPO, create_pr=True)
    assert second.pull_request.endswith("/discussions/1")
    assert second.commit == first.commit
    assert len(list(here.api().get_repo_discussions(REPO))) == 1


def test_a_lost_answer_opens_no_second_pull_request(here, run):
    here.api().create_repo(REPO)
    here.faults.add("POST", "/commit/", drop="after")
    pushed = push_model(run, REPO, create_pr=True)
    assert pushed.pull_request.endswith("/discussions/1")
    assert len(list(here.api().get_repo_discussions(REPO))) == 1
    assert set(here.files(REPO, revision="refs/pr/1")) >= PUBLISHED


# Refused before anything is sent


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("config.json", '{"note": "hf_%s"}' % ("b" * 34), "config.json holds what looks like a Hugging Face token"),
        (
            "tokenizer_config.json",
            '{"key": "sk-%s"}' % ("c" * 40),
            "tokenizer_config.json holds what looks like an API",
        ),
        (
            "config.json",
            '{"a": {"from": "/home/jane/models/bert"}}',
            "config.json holds a path of this machine (`a.from`",
        ),
        ("config.json", '{"from": "C:\\\\models\\\\bert"}', "holds a path of this machine"),
    ],
)
def test_secrets_and_paths_are_refused(here, run, name, text, said):
    (run / name).write_text(text)
    with pytest.raises(ValueError, match=re.escape(said)):
        push_model(run, REPO)
    assert here.log == []


def test_what_the_data_says_is_no_path(here, run):
    record = TransferRecord.load(run)
    record.examples = [{"text": "/r/movies/is", "label": "good"}]
    record.save(run)
    assert push_model(run, REPO).repo == REPO


def test_a_run_without_weights_is_refused(here, run):
    (run / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="must hold weights as safetensors"):
        push_model(run, REPO)


@pytest.mark.parametrize(
    ("words", "options", "said"),
    [
        (["push", "nothing-here", REPO], {}, "Expected a run folder with a transfer_record.json"),
        (["push", "RUN", "reviews"], {}, "must be USER/NAME"),
        (["push", "RUN", "tester/a b"], {}, "must be USER/NAME"),
        (["push", "RUN", REPO], {"token": None}, "the token is missing, wrong or expired"),
        (["push", "RUN", REPO], {"token": "hf_wrong"}, "the token is missing, wrong or expired"),
        (["push", "RUN", REPO], {"token": "reader"}, "the token may only read. Make one of role write"),
        (["push", "RUN", REPO], {"token": "other"}, "Choose such a name, or log in as tester."),
        (["push", "RUN", REPO], {"HF_ENDPOINT": "http://127.0.0.1:9", "WAIT": "0"}, "no connection to the Hub"),
        (["push", "RUN", REPO], {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        (["card", "nothing-here"], {}, "Expected a run folder"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(hub, run, words, options, said, request):
    if options.pop("WAIT", None) is not None:
        # The waits between tries are real seconds in a process of its own.
        code = "import sys\nfrom hf_transfer_plugin.hub import client\nclient.WAITS = (0.0,)\n"
        code += f"from hf_transfer_plugin.cli import main\nsys.exit(main(['push', {str(run)!r}, {REPO!r}]))"
        done = hub.run(code, check=False, **options)
        assert said in done.stderr.splitlines()[-1]
        assert done.returncode == 2
        return
    done = command(hub, *[str(run) if word == "RUN" else word for word in words], **options)
    assert said in message(done)
    assert hub.repo_ids() == []


def test_a_record_of_a_newer_version_is_refused(hub, run):
    values = json.loads((run / "transfer_record.json").read_text()) | {"record_version": 99}
    (run / "transfer_record.json").write_text(json.dumps(values))
    assert "was written by a newer version" in message(command(hub, "push", run, REPO))


# Faults

ENDPOINTS = {
    "whoami": ("GET", "/api/whoami-v2"),
    "create": ("POST", "/api/repos/create"),
    "validate": ("POST", "/api/validate-yaml"),
    "preupload": ("POST", "/preupload/"),
    "batch": ("POST", "/info/lfs/objects/batch"),
    "upload": ("PUT", "."),
    "verify": ("POST", "verify"),
    "commit": ("POST", "/commit/"),
    "read back": ("POST", "/paths-info/"),
}
FAULTS = {"503": {"status": 503}, "429": {"status": 429}, "before": {"drop": "before"}, "after": {"drop": "after"}}


XET_ENDPOINTS = {n: ENDPOINTS[n] for n in ("whoami", "create", "validate", "preupload", "commit", "read back")}
XET_ENDPOINTS["xet token"] = ("GET", "/xet-write-token/")
WAYS = [("lfs", name) for name in ENDPOINTS]
WAYS += [
    pytest.param("xet", name, marks=pytest.mark.skipif(not XET_AVAILABLE, reason="hf_xet is not installed"))
    for name in XET_ENDPOINTS
]


@pytest.mark.parametrize(("leg", "endpoint"), WAYS)
@pytest.mark.parametrize("fault", FAULTS)
def test_one_fault_anywhere_loses_nothing_and_does_nothing_twice(here, run, leg, endpoint, fault):
    where = (ENDPOINTS if leg == "lfs" else XET_ENDPOINTS)[endpoint]
    rule = here.faults.add(*where, **FAULTS[fault])
    with online(xet=leg == "xet"):
        push_model(run, REPO)
    assert rule.hits == 1
    assert len(here.commits(REPO)) == 2
    assert set(here.files(REPO)) - {".gitattributes"} == PUBLISHED


@pytest.mark.parametrize("endpoint", ["create", "preupload", "commit", "read back"])
@pytest.mark.parametrize("fault", FAULTS)
def test_one_fault_on_the_way_of_a_space(here, run, endpoint, fault):
    rule = here.faults.add(*ENDPOINTS[endpoint], **FAULTS[fault])
    push_space(run, REPO, REPO)
    assert rule.hits == 1
    assert len(here.commits(REPO, "space")) == 2


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "the token is missing, wrong or expired"),
        (402, "it needs a paid plan"),
        (403, "the token may not do that"),
        (404, "there is no such repository"),
        (409, "at the same time. Run the command again."),
        (412, "the branch moved in between"),
        (413, "too large for this account"),
        (429, "limits the number of requests"),
        (500, "the Hub answers 500"),
        (503, "the Hub answers 503"),
        (418, "the Hub answers 418"),
    ],
)
def test_every_status_is_one_sentence_and_a_repeated_push_ends_well(here, run, status, said):
    rule = here.faults.add("POST", "/commit/", times=99, status=status)
    before = contents(run)
    with pytest.raises(HubError, match=re.escape(said)) as failed:
        push_model(run, REPO)
    assert "\n" not in str(failed.value)
    assert failed.value.status == status
    assert contents(run) == before
    assert rule.hits == (5 if status in client.AGAIN else 1)
    here.faults.clear()
    push_model(run, REPO)
    assert len(here.commits(REPO)) == 2


@pytest.mark.parametrize(("status", "said"), [(503, "the Hub answers 503"), (403, "the token may not do that")])
def test_a_refused_upload_is_one_sentence_too(here, run, monkeypatch, status, said):
    monkeypatch.setattr(client, "WAITS", ())  # The client itself waits between tries of an upload.
    rule = here.faults.add("PUT", ".", times=99, status=status)
    with pytest.raises(HubError, match=re.escape(said)):
        push_model(run, REPO)
    assert rule.hits > 0
    here.faults.clear()
    push_model(run, REPO)
    assert len(here.commits(REPO)) == 2


def test_the_asked_pause_is_kept_within_reason(here, run, monkeypatch):
    slept = []
    monkeypatch.setattr(client.time, "sleep", slept.append)
    here.faults.add("GET", "whoami", status=429, retry_after=7)
    here.faults.add("POST", "/repos/create", status=429, retry_after=7000)
    push_model(run, REPO)
    assert slept == [7.0, client.LONGEST]


def test_what_is_not_there_as_it_was_sent_is_told(here, run, tmp_path):
    push_model(run, REPO)
    folder = tmp_path / "other"
    folder.mkdir()
    shutil.copy(run / "config.json", folder)
    (folder / "model.safetensors").write_bytes(b"other")
    commit = here.commits(REPO)[0].id
    with pytest.raises(HubError, match=r"model\.safetensors is not there as it was sent"):
        publish._read_back(here.api(), folder, ["config.json", "model.safetensors"], REPO, "model", commit)
    with pytest.raises(HubError, match=r"absent\.txt is not there"):
        publish._read_back(here.api(), folder, ["absent.txt"], REPO, "model", commit)


# Adapters

peft_asks_by_the_old_name = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


@peft_asks_by_the_old_name
def test_an_adapter_made_directly_with_peft_keeps_its_metadata_and_gets_our_card(hub, finished, tmp_path, tokenizer):
    base = AutoModelForSequenceClassification.from_pretrained(finished)
    hub.run(["-m", "hf_transfer_plugin", "push", finished, "tester/base"])
    folder = tmp_path / "adapter"
    model = AutoModelForSequenceClassification.from_pretrained(finished)
    adapted = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2, init_lora_weights=False))
    adapted.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    record = TransferRecord.load(finished)
    record.save(folder)
    done = command(hub, "push", folder, "tester/adapter")
    assert done.returncode == 0, done.stderr
    there = hub.files("tester/adapter")
    assert json.loads(there["adapter_config.json"])["base_model_name_or_path"] == "tester/base"
    assert str(finished).encode() not in b"".join(v for k, v in there.items() if not k.endswith(".safetensors"))
    card = ModelCard(there["README.md"].decode())
    assert card.data.library_name == "peft"
    assert card.data.base_model == "tester/base"
    assert card.data.base_model_relation == "adapter"
    assert {"base_model:adapter:tester/base", "lora", "hf-transfer-plugin"} <= set(card.data.tags)
    assert "## Uses and limits" in card.text
    code = re.search(r"```python\n(.*?)\n```", card.text, flags=re.DOTALL).group(1)
    asked = f"import json\nprint(json.dumps(classify({TEXT!r}, top_k=None)))"
    answer = json.loads(hub.run(f"{code}\n{asked}", token=None).stdout.splitlines()[-1])
    expected = pipeline("text-classification", model=adapted.merge_and_unload(), tokenizer=tokenizer)(TEXT, top_k=None)
    assert {a["label"]: pytest.approx(a["score"], abs=1e-5) for a in answer} == {
        e["label"]: e["score"] for e in expected
    }
    plain = pipeline("text-classification", model=base, tokenizer=tokenizer)(TEXT, top_k=None)
    assert abs(plain[0]["score"] - expected[0]["score"]) > 1e-4


@peft_asks_by_the_old_name
def test_an_adapter_of_a_local_base_without_its_id_is_refused(here, finished, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(finished)
    get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2)).save_pretrained(tmp_path / "adapter")
    record = TransferRecord.load(finished)
    record.base_model_id = None
    record.save(tmp_path / "adapter")
    with pytest.raises(ValueError, match="Name the base model: set `base_model_id`"):
        push_model(tmp_path / "adapter", REPO)
    assert here.log == []


# Spaces


@pytest.mark.parametrize("xet", LEGS)
def test_model_and_space_in_one_command(hub, run, tmp_path, xet):
    done = command(hub, "push", run, REPO, "--space", xet=xet)
    assert done.returncode == 0, done.stderr
    assert f"The demo is at {hub.endpoint}/spaces/{REPO}" in done.stdout
    expected = contents(render_space(TransferRecord.load(run), tmp_path / "space", REPO))
    there = {k: v for k, v in hub.files(REPO, "space").items() if k != ".gitattributes"}
    assert there == expected
    with online():
        assert hub.api().space_info(REPO).sdk == "gradio"
    command(hub, "push", run, REPO, "--space", xet=xet)
    assert len(hub.commits(REPO, "space")) == 2


def test_a_space_that_needs_a_paid_plan_is_told_with_three_ways_out(here, run):
    here.free_account = True
    with pytest.raises(
        HubError, match=r"zero-a10g.*static Space.*only write the folder with `hf-transfer-plugin demo"
    ) as failed:
        push_space(run, REPO, REPO)
    assert failed.value.status == 402
    push_space(run, REPO, REPO, hardware="zero-a10g")
    assert len(here.commits(REPO, "space")) == 2


def test_a_space_for_an_unsupported_task_is_refused_before_the_model_is_pushed(hub, run):
    record = TransferRecord.load(run)
    record.task = "depth-estimation"
    record.save(run)
    assert "There are demos for" in message(command(hub, "push", run, REPO, "--space"))
    assert hub.repo_ids() == []


def test_checksums_are_git_and_sha256(tmp_path):
    class Entry:
        lfs = None
        blob_id = hashlib.sha1(b"blob 3\0abc", usedforsecurity=False).hexdigest()

    (tmp_path / "file").write_bytes(b"abc")
    assert publish._same(tmp_path / "file", Entry)
    assert Entry.blob_id == "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f"
