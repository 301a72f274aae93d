"""One word, one model: every format, and what is said where there is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from lmsmith.catalogue import registry, versions
from lmsmith.catalogue.reading import read_config, read_model
from lmsmith.catalogue.registry import Record
from lmsmith.catalogue.resolve import Source, resolve, weights_sum
from lmsmith.catalogue.versions import Version
from lmsmith.core.errors import UserError
from lmsmith.core.paths import models_folder
from lmsmith.runs.records import write_record
from lmsmith.tokenizers import Tokenizer
from lmsmith.tokenizers.hugging_face import to_hugging_face


def register(name: str, path: Path) -> None:
    record = Record(name, "gguf", path.name, "here", "", 1, registry.now())
    with registry.registering(name) as partial:
        shutil.copy(path, partial)
        registry.write_record(partial, record)


def test_every_format_gives_the_same_model(run: Path, hugging_face: Path, gguf_file: Path) -> None:
    register("mine", gguf_file)
    model = run / "pretrain" / "model"
    assert resolve(run) == Source("lmsmith", model, str(run))
    assert resolve(run / "pretrain").path == model
    assert resolve(hugging_face) == Source("hf", hugging_face, str(hugging_face))
    assert resolve(gguf_file).format == "gguf"
    assert resolve("mine") == Source("gguf", models_folder() / "mine" / gguf_file.name, "mine")
    first = read_model(run)
    for word in (model, hugging_face, gguf_file, "mine"):
        other = read_model(word)
        for name, weight in first.decoder.state_dict().items():
            assert torch.equal(other.decoder.state_dict()[name], weight)
        assert other.tokenizer.encode("hello 你好") == first.tokenizer.encode("hello 你好")
        assert read_config(other.source) == other.decoder.config
        assert other.decoder.config.parameters == first.decoder.config.parameters
        assert all(parameter.requires_grad for parameter in other.decoder.parameters())
    folder = gguf_file.parent / "alone"
    folder.mkdir()
    shutil.copy(gguf_file, folder)
    assert resolve(folder).format == "gguf"


def test_a_path_goes_before_a_name(
    gguf_file: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    register("small", gguf_file)
    assert resolve("small").format == "lmsmith"
    monkeypatch.chdir(run)
    assert resolve("small").format == "gguf"


def test_a_name_with_versions_means_the_promoted_one(
    gguf_file: Path, run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LMSMITH_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    register("ours", gguf_file)
    for number in (1, 2):
        folder = versions.folder_of("ours") / versions.NEXT
        shutil.copytree(run / "pretrain/model", folder / "model")
        made = Version("ours", number, "model", versions.hash_model(folder / "model"), "run", "")
        versions.write_version(folder, made)
        versions.put_in_place(made)
        if number == 1:
            assert resolve("ours").format == "gguf"  # no version is promoted yet
            versions.found_lineage(made, "me")
    assert resolve("ours") == Source("lmsmith", versions.folder_of("ours") / "1/model", "ours")
    assert resolve("ours@2") == Source("lmsmith", versions.folder_of("ours") / "2/model", "ours@2")
    versions.promote("ours", 2, "me")
    assert resolve("ours").path == resolve("ours@2").path
    assert read_model("ours@1").source.name == "ours@1"
    with pytest.raises(UserError, match="ours@7: no such version"):
        resolve("ours@7")
    with pytest.raises(UserError, match=r"did you mean ours\?"):
        resolve("our")
    (tmp_path / "ours").symlink_to(run)
    assert resolve("ours").path == Path("ours/pretrain/model")


def test_which_stage_a_run_stands_for_is_said(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    def said() -> list[str]:
        caplog.clear()
        resolve(run)
        return caplog.messages

    assert said() == [f"{run}: the model of pretrain"]
    recipe = {"recipe": {"pretrain": {}, "sft": {}, "ppo": {}}}
    (run / "recipe.json").write_text(json.dumps(recipe))
    assert said() == [f"{run}: the model of pretrain (ppo is not done, sft is not done)"]
    shutil.copytree(run / "pretrain" / "model", run / "sft" / "model")
    shutil.copytree(run / "pretrain" / "model", run / "ppo" / "model")
    assert said() == [f"{run}: the model of ppo"]
    for stage, content, read in (("sft", "new", {}), ("ppo", "x", {"model/a": "old"})):
        inputs = {"policy": {"stage": "sft", "files": read}} if read else {}
        record = {"outputs": {"model/a": content}, "inputs": inputs}
        write_record(run / stage / "stage.json", record)
    (run / ".ppo.next").mkdir()
    note = "made before the present sft; run its recipe again, a new one is not done"
    assert said() == [f"{run}: the model of ppo ({note})"]
    write_record(run / "ppo" / "stage.json", {"inputs": {"policy": {"stage": "sft", "files": {}}}})
    base = {"stage": "pretrain", "files": {"model/a": "old"}}
    write_record(run / "sft" / "stage.json", {"outputs": {}, "inputs": {"base": base}})
    write_record(run / "pretrain" / "stage.json", {"outputs": {"model/a": "new"}})
    (run / ".sft.next").mkdir()
    note = "made before the present pretrain; run its recipe again, a new one is not done"
    assert said() == [f"{run}: the model of ppo ({note}, a new sft is not done)"]
    policy = {"stage": "sft", "files": {"model/a": "old"}}
    write_record(run / "ppo" / "stage.json", {"inputs": {"policy": policy}})
    write_record(run / "sft" / "stage.json", {"outputs": {"model/a": "new"}})
    (run / ".sft.next").rmdir()
    (run / "ppo" / "model" / "adapter.safetensors").touch()
    assert said() == [
        f"{run}: the adapters of ppo are not used: sft was made again since (run its recipe again)",
        f"{run}: the model of sft",
    ]
    resolve(run / "ppo")
    assert len(caplog.messages) == 2, "a stage's folder says itself whose model it holds"


def test_what_is_unknown_is_told_apart(
    run: Path, gguf_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parents[1])
    register("my-model", gguf_file)
    for word, message in {
        "my-modle": "did you mean my-model",
        "smollm2-135m": "not on this machine yet\n.*lmsmith pull smollm2-135m",
        "smolm2-135": r"did you mean smollm2-135m\? Fetch it: lmsmith pull",
        "hf:someone/else": "not on this machine yet\n.*lmsmith pull hf:someone/else",
        "small": "did you mean runs/small",
        "runs/smal": "did you mean runs/small",
        "quite-another": "the models here: my-model; the runs here: runs/small; .*lmsmith pull",
        "runs/small/recipe.json": "is a file; a model is a folder, or a file that ends in .gguf",
    }.items():
        with pytest.raises(UserError, match=message):
            resolve(word)
    with pytest.raises(UserError, match="runs is neither a model folder nor a run"):
        resolve("runs")


def test_files_of_two_models_are_noticed(hugging_face: Path) -> None:
    letters = [chr(number) * 3 for number in range(0x4E00, 0x4E80)]
    other = Tokenizer.train([" ".join(letters)] * 5, 600)
    to_hugging_face(other, hugging_face)
    with pytest.raises(UserError, match=r"the model knows \d+ tokens.*\n.*not of one model"):
        read_model(hugging_face)


def test_another_chat_template_is_another_model(hugging_face: Path, tmp_path: Path) -> None:
    """What was measured with the one must not be taken for the other's."""
    folder = shutil.copytree(hugging_face, tmp_path / "hf")
    sums = [weights_sum(resolve(folder))]
    for text in ("{{ messages }}", "{{ messages[0] }}"):
        (folder / "chat_template.jinja").write_text(text)
        sums.append(weights_sum(resolve(folder)))
    assert len(set(sums)) == 3
