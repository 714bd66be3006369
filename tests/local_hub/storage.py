"""What the Hub keeps: repositories with commits, refs and pull requests, and the large blobs on disk."""

import hashlib
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import yaml

LFS_PATTERNS = """
*.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.mlmodel *.model *.msgpack *.npy *.npz *.onnx *.ot
*.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors saved_model/**/* *.tar.* *.tar *.tflite *.tgz *.wasm *.xz
*.zip *.zst *tfevents*
"""
GIT_ATTRIBUTES = "".join(f"{each} filter=lfs diff=lfs merge=lfs -text\n" for each in LFS_PATTERNS.split()).encode()
KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
PREFIX = {"model": "", "dataset": "datasets/", "space": "spaces/"}


class HubError(Exception):
    """An answer that is not a success; `code` goes into `X-Error-Code`, which is all the client recognises."""

    def __init__(self, status, message, code=None, **extra):
        super().__init__(message)
        self.status, self.message, self.code, self.extra = status, message, code, extra


@dataclass(frozen=True)
class File:
    """A path's content: the bytes of a regular file, or the sha256 of one in LFS."""

    oid: str
    size: int
    data: bytes | None = None
    sha256: str | None = None

    @property
    def pointer(self):
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    @property
    def etag(self):
        return self.sha256 or self.oid


def git_hash(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def regular(data):
    return File(git_hash(data), len(data), data=data)


def large(sha256, size):
    return File(git_hash(File("", size, sha256=sha256).pointer), size, sha256=sha256)


class Blobs:
    """Content by sha256, in a folder."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def __contains__(self, sha256):
        return (self.folder / sha256).exists()

    def add(self, data, sha256):
        if hashlib.sha256(data).hexdigest() != sha256:
            raise HubError(400, "The content does not have the announced sha256")
        (self.folder / sha256).write_bytes(data)

    def path(self, sha256):
        return self.folder / sha256

    def size(self, sha256):
        return self.path(sha256).stat().st_size

    def read(self, file):
        return file.data if file.sha256 is None else self.path(file.sha256).read_bytes()


@dataclass
class Commit:
    id: str
    title: str
    message: str
    author: str
    date: str
    parent: str | None
    files: dict[str, File]


@dataclass
class Pull:
    number: int
    title: str
    description: str
    author: str
    base: str
    date: str
    is_pull: bool = True
    status: str = "draft"


def now():
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


@dataclass
class Repo:
    type: str
    id: str
    private: bool
    created: str = field(default_factory=now)
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    pulls: dict[int, Pull] = field(default_factory=dict)
    space: dict = field(default_factory=dict)

    @property
    def owner(self):
        return self.id.split("/")[0]

    @property
    def url(self):
        return PREFIX[self.type] + self.id

    def ref(self, revision):
        """The full name of a ref, or None where `revision` is none."""
        names = (revision, f"refs/heads/{revision}", f"refs/tags/{revision}")
        return next((name for name in names if name in self.refs), None)

    def head(self, revision):
        name = self.ref(revision)
        if name is not None:
            return self.commits[self.refs[name]]
        if re.fullmatch("[0-9a-f]{7,40}", revision):
            for id in self.commits:
                if id.startswith(revision):
                    return self.commits[id]
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def log(self, revision):
        """The commits behind a revision, newest first."""
        found, commit = [], self.head(revision)
        while commit is not None:
            found.append(commit)
            commit = self.commits.get(commit.parent)
        return found

    def commit(self, ref, files, title, message="", author="hub"):
        parent = self.refs.get(ref)
        what = f"{self.type} {self.id} {parent} {len(self.commits)} {title} {sorted(files)} {now()}"
        id = hashlib.sha1(what.encode()).hexdigest()
        self.commits[id] = Commit(id, title, message, author, now(), parent, dict(files))
        self.refs[ref] = id
        return self.commits[id]

    def open_pull(self, title, description, author, base, is_pull=True):
        number = len(self.pulls) + 1
        self.pulls[number] = Pull(number, title, description, author, base, now(), is_pull)
        if is_pull:
            self.refs[f"refs/pr/{number}"] = self.head(base).id
        return self.pulls[number]


def front_matter(text):
    """The YAML at the top of a README as a dictionary, or the parser's message."""
    match = re.match(r"﻿?\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    if match is None:
        return {}
    try:
        found = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return str(error)
    return found if isinstance(found, dict) else {}
