"""Signed commits: real git and ssh-keygen make the signatures; and what is no signature of an allowed signer."""

import base64
import os
import pathlib
import subprocess
from typing import Any

import msgspec
import pytest

from ptt.directory.edit import EditError, apply
from ptt.directory.repository import Author
from ptt.directory.sshsig import BadSignature, BadSigners, parse_signers, verify

KINDS = {
    "ed25519": ["-t", "ed25519"],
    "ecdsa": ["-t", "ecdsa", "-b", "256"],
    "rsa": ["-t", "rsa", "-b", "2048"],
}


def keygen(path: pathlib.Path, kind: str) -> str:
    subprocess.run(["ssh-keygen", "-q", "-N", "", "-C", "x", *KINDS[kind], "-f", str(path)], check=True)
    return path.with_suffix(".pub").read_text().strip()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[pathlib.Path, str]]:
    """Kind -> (file of the private key, line of the public key)."""
    folder = tmp_path_factory.mktemp("keys")
    return {kind: (folder / kind, keygen(folder / kind, kind)) for kind in KINDS}


def sign(key: pathlib.Path, message: bytes, namespace: str = "git", hash_name: str = "sha512") -> str:
    command = ["ssh-keygen", "-q", "-Y", "sign", "-n", namespace, "-O", f"hashalg={hash_name}", "-f", str(key)]
    return subprocess.run(command, input=message, capture_output=True, check=True).stdout.decode()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hash_name", ["sha256", "sha512"])
def test_signatures_of_ssh_keygen(keys: Any, kind: str, hash_name: str) -> None:
    key, public = keys[kind]
    signers = parse_signers(f'# people\n\nanna@a.example,*@b.example namespaces="git,file" {public}\n')
    signature = sign(key, b"message", hash_name=hash_name)
    assert verify(signature, b"message", signers, 0).principals == "anna@a.example,*@b.example"
    with pytest.raises(BadSignature, match="does not belong"):
        verify(signature, b"massage", signers, 0)
    others = parse_signers("".join(f"x {p}\n" for k, (_, p) in keys.items() if k != kind))
    with pytest.raises(BadSignature, match="not among the allowed"):
        verify(signature, b"message", others, 0)


def test_every_flipped_byte_is_noticed(keys: Any) -> None:
    key, public = keys["ed25519"]
    signers = parse_signers(f"x {public}")
    lines = sign(key, b"message").splitlines()
    data = base64.b64decode("".join(lines[1:-1]))
    for n in range(len(data)):
        for bad in (data[:n] + bytes([data[n] ^ 1]) + data[n + 1 :], data[:n], data + b"x"):
            armoured = "\n".join([lines[0], base64.b64encode(bad).decode(), lines[-1]])
            with pytest.raises(BadSignature):
                verify(armoured, b"message", signers, 0)


def test_namespaces_and_times(keys: Any) -> None:
    key, public = keys["ed25519"]
    signature = sign(key, b"m")
    for options, now, reason in (
        ('namespaces="file"', 0, "not in the namespaces"),
        ('valid-before="20200101Z"', 1.7e9, "not valid now"),
        ('valid-after="20990101000000Z"', 1.7e9, "not valid now"),
    ):
        with pytest.raises(BadSignature, match=reason):
            verify(signature, b"m", parse_signers(f"x {options} {public}"), now)
    lawful = parse_signers(f'x valid-after="20200101",valid-before="209901010000Z",namespaces="g*" {public}')
    assert verify(signature, b"m", lawful, 1.7e9)
    with pytest.raises(BadSignature, match="for the namespace b'file'"):
        verify(sign(key, b"m", "file"), b"m", lawful, 1.7e9)


@pytest.mark.parametrize("text", ["", "x", "-----BEGIN PGP SIGNATURE-----\nx\n-----END", "y" * 99_999])
def test_what_is_no_signature(text: str) -> None:
    with pytest.raises(BadSignature):
        verify(text, b"", [], 0)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("x", "is not PRINCIPALS"),
        ("ssh-ed25519 AAAA", "is not PRINCIPALS"),
        ("x ssh-ed25519 !", "line 2"),
        ("x ssh-ed25519 AAAA", "line 2"),
        ("x sk-ssh-ed25519@openssh.com AAAA", "is not PRINCIPALS"),
        ("x cert-authority {key}", "'cert-authority' is not supported"),
        ('x valid-before="soon" {key}', "is no time"),
        ("x ssh-rsa {wire}", "another kind"),
    ],
)
def test_lines_that_are_refused(keys: Any, line: str, reason: str) -> None:
    public = keys["ed25519"][1]
    other = "AAAAB3NzaC1kc3MAAAA="
    with pytest.raises(BadSigners, match=reason):
        parse_signers("#\n" + line.format(key=public, wire=other))


def test_short_rsa_keys_are_refused(tmp_path: pathlib.Path) -> None:
    command = ["ssh-keygen", "-q", "-N", "", "-t", "rsa", "-b", "1024", "-f", str(tmp_path / "k")]
    subprocess.run(command, check=True)
    with pytest.raises(BadSigners, match="fewer than 2048"):
        parse_signers("x " + (tmp_path / "k.pub").read_text())


# -- commits -----------------------------------------------------------------------------------------------------


class Clone:
    """A clone that people commit in with git."""

    def __init__(self, base: Any, path: pathlib.Path) -> None:
        self.path = path
        self.git("clone", "-q", "-b", "main", base.repository.path, str(path), at=path.parent)

    def git(self, *arguments: str, at: pathlib.Path | None = None) -> str:
        settings = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
        options = ["user.name=Eve", "user.email=eve@host.example", "safe.directory=*", "gpg.format=ssh"]
        command = ["git", "-C", str(at or self.path), *(word for o in options for word in ("-c", o)), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=settings)
        return done.stdout.strip()

    def commit(self, user: str, key: pathlib.Path | None) -> str:
        (self.path / f"users/a.example/{user}.toml").write_text("")
        self.git("add", ".")
        signed = ["-c", f"user.signingkey={key}", "commit", "-S"] if key else ["commit"]
        self.git(*signed, "-qm", f"add {user}")
        self.git("push", "-q", "origin", "HEAD:main")
        return self.git("rev-parse", "HEAD")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_only_signed_commits_come_into_force(base: Any, keys: Any, tmp_path: pathlib.Path, kind: str) -> None:
    key, public = keys[kind]
    first = base.control()
    before = first.commit
    first.close()
    allowed = tmp_path / "allowed"
    allowed.write_text(f"eve@host.example {public}\n")
    settings = msgspec.structs.replace(base.config.directory, allowed_signers=str(allowed))
    base.config = msgspec.structs.replace(base.config, directory=settings)
    control = base.control()
    assert control.commit == before  # what is in force stays
    clone = Clone(base, tmp_path / "clone")
    clone.commit("u1", None)
    assert not control.refresh()
    (event,) = base.events("directory commit refused")
    assert "it is not signed" in event["reason"]
    assert (control.commit, base.alarm()) == (before, 1)
    other = next(k for k in KINDS if k != kind)
    clone.commit("u2", keys[other][0])
    assert not control.refresh()
    assert "not among the allowed signers" in base.events("directory commit refused")[1]["reason"]
    good = clone.commit("u3", key)  # covers what is behind it
    assert control.refresh()
    assert (control.commit, base.alarm()) == (good, 0)
    assert base.snapshot().user("u1@a.example") is not None
    with pytest.raises(EditError, match="commands cannot sign"):
        apply(settings, lambda _: {}, "x", Author("x", "x"))


def test_a_broken_list_of_signers_changes_nothing(base: Any, tmp_path: pathlib.Path) -> None:
    settings = msgspec.structs.replace(base.config.directory, allowed_signers=str(tmp_path / "missing"))
    base.config = msgspec.structs.replace(base.config, directory=settings)
    control = base.control()
    assert control.commit == ""
    assert "missing" in str(base.events("directory cannot be compiled")[0]["reason"])


# -- rewritten history, where it is allowed ----------------------------------------------------------------------


def test_allow_rewrite(base: Any, make_base: Any) -> None:
    base.control()
    here = make_base("there", remote=f"file://{base.repository.path}")
    settings = msgspec.structs.replace(here.config.directory, allow_rewrite=True)
    here.config = msgspec.structs.replace(here.config, directory=settings)
    control = here.control()
    first = base.repository.tip()
    second = base.commit({"users/a.example/bob.toml": ""})
    assert control.fetch()
    assert control.commit == second
    base.repository.move(base.repository.ref, first, second)  # git push --force to an older commit
    assert control.fetch()
    assert control.commit == first
    assert here.snapshot().user("bob@a.example") is None
    other = base.repository.commit({"domains/c.example.toml": b""}, "x", Author("x", "x@x.example"), "")
    base.repository.move(base.repository.ref, other, first)
    assert control.fetch()
    assert (control.commit, here.alarm()) == (other, 0)
    assert here.snapshot().domains() == ["c.example"]
    assert here.snapshot().user("anna@a.example") is None


def test_allow_rewrite_loses_no_commit_of_ours(base: Any, make_base: Any) -> None:
    base.control()
    here = make_base("there", remote=f"file://{base.repository.path}")
    settings = msgspec.structs.replace(here.config.directory, allow_rewrite=True)
    here.config = msgspec.structs.replace(here.config, directory=settings)
    control = here.control()
    ours = here.commit({"users/a.example/ours.toml": ""})
    assert control.refresh()
    first = base.repository.tip()
    other = base.repository.commit({"domains/c.example.toml": b""}, "x", Author("x", "x@x.example"), "")
    base.repository.move(base.repository.ref, other, first)
    assert not control.fetch()
    assert (control.commit, here.alarm()) == (ours, 1)
