"""The Xet leg: a content-addressed store per token, written and read by the client's real Rust code.

hf_xet takes `local://FOLDER` where the Hub would name its storage service. Such a store is locked to one process,
so each token gets a folder of its own, and the server reads copies.
"""

import hashlib
import importlib.util
import shutil
import struct
import time
from pathlib import Path

AVAILABLE = importlib.util.find_spec("hf_xet") is not None
LIFETIME = 3600
BLOCK = 48  # a shard is a sequence of records of one size
END = b"\xff" * 32
VERIFICATION, METADATA = 0x80000000, 0x40000000


def words(digest):
    """Xet prints a hash as four little-endian numbers."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", digest))


def shard_files(data):
    """(xet hash, sha256, size) of each file that a shard describes."""
    found, at = [], BLOCK
    while data[at : at + 32] != END:
        xet_hash = words(data[at : at + 32])
        flags, count = struct.unpack("<II", data[at + 32 : at + 40])
        at += BLOCK
        size = sum(struct.unpack("<I", data[at + i * BLOCK + 36 : at + i * BLOCK + 40])[0] for i in range(count))
        at += count * BLOCK * (2 if flags & VERIFICATION else 1)
        if flags & METADATA:
            found.append((xet_hash, words(data[at : at + 32]), size))
            at += BLOCK
    return found


class XetStore:
    def __init__(self, folder, blobs):
        self.folder, self.blobs = Path(folder), blobs
        self.hashes = {}  # sha256 -> xet hash
        self.seen = set()
        self.count = 0

    def new_folder(self, kind):
        self.count += 1
        folder = self.folder / f"{kind}-{self.count}"
        folder.mkdir(parents=True)
        return folder

    def token(self, folder):
        expires = int(time.time()) + LIFETIME
        return {"casUrl": f"local://{folder}", "exp": expires, "accessToken": f"xet-{folder.name}"}

    def write_token(self):
        return self.token(self.new_folder("write"))

    def read_token(self, files):
        """A store with these LFS files; a reader has it to itself."""
        folder = self.new_folder("read")
        self.ingest(folder, {file.sha256 for file in files if file.sha256 in self.hashes})
        return self.token(folder)

    def connection(self, folder):
        token = self.token(folder)
        return {"endpoint": token["casUrl"], "token": "server", "token_expiry_unix_secs": token["exp"]}

    def ingest(self, folder, digests):
        import hf_xet

        with hf_xet.XetSession().new_upload_commit(**self.connection(folder)) as commit:
            for sha256 in sorted(digests):
                commit.start_upload_file(str(self.blobs.path(sha256)), sha256=sha256)

    def know(self, sha256):
        """Gives a blob that came over LFS its xet hash, as the Hub does."""
        if AVAILABLE and sha256 not in self.hashes:
            import hf_xet

            self.hashes[sha256] = hf_xet.hash_files([str(self.blobs.path(sha256))])[0].hash

    def collect(self):
        """Rebuilds every file that clients uploaded since the last call, checks its sha256 and keeps it as a blob."""
        for folder in sorted(self.folder.glob("write-*")):
            new = [shard for shard in folder.glob("xet/xorbs/shards/*.mdb") if shard not in self.seen]
            files = [file for shard in new for file in shard_files(shard.read_bytes())]
            self.seen |= set(new)
            if files:
                self.rebuild(folder, files)

    def rebuild(self, folder, files):
        import hf_xet

        copy = self.new_folder("copy")
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        group = hf_xet.XetSession().new_download_stream_group(**self.connection(copy))
        for xet_hash, sha256, size in files:
            data = b"".join(group.download_stream(hf_xet.XetFileInfo(xet_hash, size)))
            if hashlib.sha256(data).hexdigest() == sha256:
                self.blobs.add(data, sha256)
                self.hashes[sha256] = xet_hash
        del group
        shutil.rmtree(copy)
