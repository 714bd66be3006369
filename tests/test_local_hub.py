"""The local Hub answers the real client as the Hub does: each test is a conversation with huggingface_hub."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, get_session
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

from tests.local_hub import LocalHub, online
from tests.local_hub.conversation import REPO, WEIGHTS, needs_xet, status, upload

pytest_plugins = ["tests.local_hub.fixtures"]
pytestmark = pytest.mark.hub


# uploads and downloads


def test_a_file_goes_up_and_comes_down(hub, api, repo, leg, cache):
    upload(api)
    upload(api, b"{}", "nested/config.json")
    assert hub.files(REPO)["model.safetensors"] == WEIGHTS
    for name, content in (("model.safetensors", WEIGHTS), ("nested/config.json", b"{}")):
        assert Path(api.hf_hub_download(REPO, name, cache_dir=cache)).read_bytes() == content
    assert bool(hub.requests("PUT", "/blobs/")) == (leg == "lfs")
    assert bool(hub.requests("GET", "/xet-write-token/")) == bool(hub.requests("GET", "/xet-read-token/"))
    assert bool(hub.requests("GET", "/xet-write-token/")) == (leg == "xet")


def test_a_folder_is_one_commit_and_its_repetition_none(hub, api, repo, leg, tmp_path, cache):
    folder = tmp_path / "run"
    (folder / "sub").mkdir(parents=True)
    content = {"model.safetensors": WEIGHTS, "sub/other.bin": WEIGHTS[::-1], "config.json": b"{}", "empty.txt": b""}
    for name, data in content.items():
        (folder / name).write_bytes(data)
    for _ in range(2):
        api.upload_folder(folder_path=folder, repo_id=REPO, commit_message="Run")
        assert [commit.title for commit in hub.commits(REPO)] == ["Run", "initial commit"]
    assert content.items() <= hub.files(REPO).items()
    snapshot = api.snapshot_download(REPO, cache_dir=cache)
    assert {name: Path(snapshot, name).read_bytes() for name in content} == content


def test_the_same_file_again_makes_no_commit(hub, api, repo, leg):
    for _ in range(2):
        upload(api)
        upload(api, b"text", "notes.txt")
    assert len(hub.commits(REPO)) == 3
    upload(api, b"other text", "notes.txt")
    assert len(hub.commits(REPO)) == 4


@needs_xet
def test_what_came_over_lfs_goes_out_over_xet_and_back(hub, api, repo, cache):
    upload(api)
    with online(xet=True):
        upload(api, WEIGHTS[::-1], "second.bin")
        assert Path(api.hf_hub_download(REPO, "model.safetensors", cache_dir=cache)).read_bytes() == WEIGHTS
    assert not hub.requests("GET", "/blobs/")
    assert Path(api.hf_hub_download(REPO, "second.bin", cache_dir=cache)).read_bytes() == WEIGHTS[::-1]
    assert hub.requests("GET", "/blobs/")


@needs_xet
def test_two_processes_upload_over_xet_at_once(hub, api, repo, cache):
    code = """
    import os, sys
    from huggingface_hub import HfApi
    HfApi().upload_file(path_or_fileobj=bytes([int(sys.argv[1])]) * 300_000, path_in_repo=f"{sys.argv[1]}.bin",
                        repo_id="tester/tiny")
    """
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(i)],
            env=hub.environment(cache / str(i), xet=True),
            stderr=subprocess.PIPE,
        )
        for i in (1, 2)
    ]
    for writer in writers:
        assert writer.wait(timeout=60) == 0, writer.stderr.read()
        writer.stderr.close()
    assert {f"{i}.bin": bytes([i]) * 300_000 for i in (1, 2)}.items() <= hub.files(REPO).items()


def test_a_wrong_sha256_is_refused(hub, api, repo):
    operation = CommitOperationAdd("model.safetensors", WEIGHTS)
    operation.upload_info.sha256 = bytes(32)
    with pytest.raises(RuntimeError, match="uploading 'model.safetensors'") as caught:
        api.create_commit(REPO, [operation], commit_message="Wrong")
    assert caught.value.__cause__.response.status_code == 400
    assert len(hub.commits(REPO)) == 1


def test_metadata_without_content(hub, api, repo):
    upload(api)
    upload(api, b"---\nlicense: mit\npipeline_tag: text-classification\ntags: [a]\n---\n", "README.md")
    found = api.model_info(REPO, files_metadata=True)
    sibling = next(each for each in found.siblings if each.rfilename == "model.safetensors")
    assert (sibling.size, sibling.lfs.size) == (len(WEIGHTS), len(WEIGHTS))
    assert (found.pipeline_tag, found.card_data.license) == ("text-classification", "mit")
    assert found.sha == hub.commits(REPO)[0].id == api.list_repo_commits(REPO)[0].commit_id
    assert api.file_exists(REPO, "README.md")
    assert not api.file_exists(REPO, "nothing.md")
    upload(api, b"x", "a/b/c.txt")
    assert [entry.path for entry in api.list_repo_tree(REPO, "a")] == ["a/b"]
    assert [entry.path for entry in api.get_paths_info(REPO, ["a", "README.md", "no"])] == ["a", "README.md"]
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(REPO, "no"))
    assert [each.id for each in api.list_models(author="tester")] == [REPO]


def test_deleting_and_the_parent_commit(hub, api, repo):
    first = upload(api, b"1", "a/one.txt").oid
    upload(api, b"2", "two.txt")
    assert status(upload, api, b"3", "three.txt", parent_commit=first) == 412
    api.delete_file("two.txt", REPO)
    api.delete_folder("a", REPO)
    assert set(hub.files(REPO)) == {".gitattributes"}
    with pytest.raises(EntryNotFoundError):
        api.delete_file("two.txt", REPO)


def test_the_token_stays_at_home(tmp_path, cache):
    with LocalHub(tmp_path / "hub", xet=False) as hub, online():
        hub.api().create_repo(REPO, private=True)
        upload(hub.api())
        hub.api().hf_hub_download(REPO, "model.safetensors", cache_dir=cache)
        assert {entry.host for entry in hub.requests("GET", "/blobs/")} == {"localhost"}
        assert hub.leaks() == []
        url = hub.state.signed(next(iter(hub.state.blobs.folder.iterdir())).name)
        assert get_session().get(url, headers={"Authorization": f"Bearer {hub.tokens['writer']}"}).status_code == 400
        assert len(hub.leaks()) == 1
        assert get_session().get(url.split("?")[0]).status_code == 403
        part = get_session().get(url, headers={"Range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, WEIGHTS[10:20])


# who may do what


def test_accounts(hub, api, repo):
    roles = {name: hub.api(name).whoami()["auth"]["accessToken"]["role"] for name in hub.tokens}
    assert roles == {"writer": "write", "reader": "read", "other": "write"}
    assert api.whoami()["name"] == hub.user
    assert status(hub.api("hf_wrong").whoami) == 401
    assert status(upload, hub.api("hf_wrong")) == 401
    for name in ("reader", "other"):
        assert status(upload, hub.api(name)) == 403
    assert status(hub.api("reader").create_repo, "tester/new") == 403
    assert status(hub.api("other").create_repo, "tester/new") == 403
    assert status(upload, hub.api(False)) == 401
    assert len(hub.commits(REPO)) == 1


def test_private_repositories_are_not_there_for_others(hub, api, cache):
    api.create_repo(REPO, private=True)
    upload(api, b"{}", "config.json")
    hub.api("reader").hf_hub_download(REPO, "config.json", cache_dir=cache)
    for name in ("other", False):
        with pytest.raises(RepositoryNotFoundError):
            hub.api(name).model_info(REPO)
        assert list(hub.api(name).list_models(author="tester")) == []
    assert api.model_info(REPO).private
    api.update_repo_settings(REPO, private=False)
    assert not hub.api("other").model_info(REPO).private


def test_creating_twice_and_deleting(hub, api, repo):
    assert status(api.create_repo, REPO) == 409
    assert api.create_repo(REPO, exist_ok=True).repo_id == REPO
    api.create_repo(REPO, repo_type="dataset")
    assert (hub.repo_ids(), hub.repo_ids("dataset")) == ([REPO], [REPO])
    api.delete_repo(REPO)
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo(REPO)
    assert (hub.repo_ids(), hub.repo_ids("dataset")) == ([], [REPO])


# revisions


def test_branches_and_tags(hub, api, repo, cache):
    upload(api, b"1", "a.txt")
    api.create_branch(REPO, branch="feature/x")
    assert status(api.create_branch, REPO, branch="feature/x") == 409
    upload(api, b"2", "a.txt", revision="feature/x")
    api.create_tag(REPO, tag="v1", revision="feature/x")
    upload(api, b"3", "a.txt", revision="feature/x")
    downloads = [api.hf_hub_download(REPO, "a.txt", revision=name, cache_dir=cache) for name in ("main", "v1")]
    assert [Path(file).read_text() for file in downloads] == ["1", "2"]
    assert hub.files(REPO, revision="feature/x")["a.txt"] == b"3"
    refs = api.list_repo_refs(REPO)
    assert {each.name for each in refs.branches} == {"main", "feature/x"}
    api.delete_tag(REPO, tag="v1")
    api.delete_branch(REPO, branch="feature/x")
    with pytest.raises(RevisionNotFoundError):
        upload(api, b"4", "a.txt", revision="feature/x")


def test_pull_requests(hub, api, repo, leg, tmp_path):
    pull = upload(hub.api("other"), create_pr=True, commit_message="Offer")
    assert (pull.pr_num, len(hub.commits(REPO))) == (1, 1)
    assert hub.files(REPO, revision="refs/pr/1")["model.safetensors"] == WEIGHTS
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    second = api.upload_folder(folder_path=tmp_path / "run", repo_id=REPO, create_pr=True, commit_message="Second")
    assert second.pr_revision == "refs/pr/2"
    assert "config.json" in hub.files(REPO, revision=second.pr_revision)
    assert api.get_discussion_details(REPO, 1).title == "Offer"
    api.merge_pull_request(REPO, 1)
    assert hub.files(REPO)["model.safetensors"] == WEIGHTS


# cards and Spaces


def test_cards_are_validated(hub, api, repo):
    text = "---\nbase_model: /home/me/model\n---\n# Model\n"
    with pytest.raises(ValueError, match='"base_model" with value "/home/me/model" is not valid'):
        upload(api, text.encode(), "README.md")
    failed = hub.run(f"from huggingface_hub import ModelCard; ModelCard({text!r}).validate()", check=False)
    assert "is not valid" in failed.stderr
    assert len(hub.commits(REPO)) == 1
    with pytest.warns(UserWarning, match="licences"):
        upload(api, b"---\nlicense: homemade\nbase_model: google/bert\n---\n", "README.md")
    assert len(hub.commits(REPO)) == 2


def test_spaces(hub, api):
    api.create_repo(
        REPO,
        repo_type="space",
        space_sdk="gradio",
        space_variables=[{"key": "MODEL", "value": "a"}],
        space_secrets=[{"key": "KEY", "value": "hidden"}],
    )
    assert api.get_space_variables(REPO)["MODEL"].value == "a"
    api.add_space_variable(REPO, "MODEL", "b")
    api.add_space_secret(REPO, "SECOND", "hidden")
    assert api.get_space_variables(REPO)["MODEL"].value == "b"
    assert set(api.get_space_secrets(REPO)) == {"KEY", "SECOND"}
    assert "hidden" not in json.dumps(get_session().get(f"{hub.endpoint}/api/spaces/{REPO}").json())
    api.delete_space_variable(REPO, "MODEL")
    assert api.get_space_variables(REPO) == {}
    assert api.request_space_hardware(REPO, "zero-a10g").requested_hardware == "zero-a10g"
    upload(api, b"print()", "app.py", repo_type="space")
    assert api.get_space_runtime(REPO).stage == "RUNNING"
    assert (api.space_info(REPO).sdk, api.pause_space(REPO).stage) == ("gradio", "PAUSED")


def test_a_free_account_pays_for_gradio_spaces(hub, api):
    hub.free_account = True
    assert status(api.create_repo, "tester/paid", repo_type="space", space_sdk="gradio") == 402
    assert not api.whoami()["isPro"]
    api.create_repo("tester/zero", repo_type="space", space_sdk="gradio", space_hardware="zero-a10g")
    api.create_repo("tester/page", repo_type="space", space_sdk="static")
    assert hub.repo_ids("space") == ["tester/page", "tester/zero"]
