"""Finding models, the cost of searching, and the errors for folders that cannot be used."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from helpers.paths import ROOT
from ovis_core.weights import built_in, hub_cache, layout
from ovis_core.weights.checkpoint import open_model
from ovis_core.weights.conversion import write_one
from ovis_core.weights.metadata import metadata
from ovis_core.weights.precision import PRECISIONS

PACK = "ovis_u1_in_this_process"
FOREIGN = 1000  # files
COMMIT, OLDER = "c" * 40, "b" * 40
HUB_FOLDER = "models--AIDC-AI--Ovis-U1-3B"
_opened: list[Path] = []
_listening: list[Path] = []


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if _listening and event == "open" and isinstance(arguments[0], str | Path):
        path = Path(arguments[0])
        if _listening[0] in path.parents:
            _opened.append(path)


@pytest.fixture(scope="session")
def hook() -> None:
    sys.addaudithook(_listen)  # Python cannot remove an audit hook


@pytest.fixture(scope="module")
def pack(comfyui: Path) -> Iterator[Any]:
    """The pack as ComfyUI loads it: its classes by the ids of their nodes."""
    import comfy.sd

    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    spec.loader.exec_module(module)

    async def load() -> list[Any]:
        return await (await module.comfy_entrypoint()).get_node_list()

    loaders = dict(vars(comfy.sd))
    yield {node.GET_SCHEMA().node_id: node for node in asyncio.run(load())}
    vars(comfy.sd).update(loaders)  # other tests wrap core's loaders themselves


@pytest.fixture
def models(comfyui: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ComfyUI's folder of models, empty; the hub's cache is empty too."""
    import folder_paths

    folder = tmp_path / "models"
    monkeypatch.setattr(folder_paths, "models_dir", str(folder))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})  # of another test's folders, which may be deleted
    for kind in ("ovis_u1", "checkpoints", "diffusion_models", "text_encoders", "diffusers"):
        (folder / kind).mkdir(parents=True)
        ends = folder_paths.folder_names_and_paths.get(kind, ([], set()))[1]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(folder / kind)], ends))
    monkeypatch.delitem(folder_paths.folder_names_and_paths, "ovis", raising=False)
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return folder


def find() -> dict[str, Path]:
    from ovis_core.native.model_list.model_search import find_models

    return find_models()


def missing(name: str) -> str:
    from ovis_core.native.model_list import missing_model

    return missing_model.why_missing(name)


def copy(release: Path, folder: Path) -> Path:
    return Path(shutil.copytree(release, folder, copy_function=place))


def place(source: Path | str, target: Path | str) -> None:
    """Links weights, to spare the disk, and copies other files, which tests change."""
    (os.link if str(source).endswith(".safetensors") else shutil.copy)(source, target)


def cache(release: Path, hub: Path, commit: str = COMMIT) -> Path:
    """Puts the release into the hub's cache in its client's layout; returns the snapshot."""
    folder = hub / "models--AIDC-AI--Ovis-U1-3B"
    snapshot = folder / "snapshots" / commit
    for made in (folder / "blobs", folder / "refs", snapshot):
        made.mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    for file in release.iterdir():
        blob = folder / "blobs" / f"{commit[:2]}{file.name}"
        place(file, blob)
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", blob.name))
    return snapshot


def whole_file(release: Path, file: Path) -> Path:
    """All parts under ComfyUI's names."""
    tensors = {}
    for shard in release.glob("*.safetensors"):
        for name, tensor in load_file(shard).items():
            for ours, comfy in (
                ("visual_generator.backbone.", "model.diffusion_model."),
                ("visual_generator.vae.", "first_stage_model."),
                ("", "text_encoders."),
            ):
                if name.startswith(ours):
                    tensors[comfy + name.removeprefix(ours)] = tensor
                    break
    save_file(tensors, file)
    return file


def foreign(folder: Path, count: int) -> None:
    """Headers of another model's files, each of 2500 tensors; their data is a hole."""
    entries = {
        f"model.diffusion_model.input_blocks.{i // 100}.{i}.transformer_blocks.0.attn1.weight": {
            "dtype": "F16",
            "shape": [64, 64],
            "data_offsets": [8192 * i, 8192 * (i + 1)],
        }
        for i in range(2500)
    }
    header = json.dumps(entries).encode()
    for number in range(count):
        file = folder / f"{number:04d}.safetensors"
        if number % 200 == 0:
            with file.open("wb") as sink:
                sink.write(struct.pack("<Q", len(header)) + header)
                sink.truncate(8 + len(header) + 8192 * 2500)
            source = file
        else:
            os.link(source, file)  # shares the bytes, but counts as a file


class Work:
    """Counts the accesses to a folder's files while it is active."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.asked: Counter[str] = Counter()
        stat = Path.stat

        def counted(path: Path, **options: Any) -> os.stat_result:
            self.asked["stat"] += path.parent == folder and path.suffix == ".safetensors"
            return stat(path, **options)

        monkeypatch.setattr(Path, "stat", counted)
        for name in (f"{PACK}.ovis_core.weights.safetensors_file", "ovis_core.weights.safetensors_file"):
            module = sys.modules[name]
            parse = module.safe_open

            def parsed(file: Path, parse: Any = parse, **options: Any) -> Any:
                self.asked["parse"] += Path(file).parent == folder
                return parse(file, **options)

            monkeypatch.setattr(module, "safe_open", parsed)

    def __enter__(self) -> Work:
        self.asked.clear()
        _opened.clear()
        _listening[:] = [self.folder]
        self.begun = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.monotonic() - self.begun
        _listening.clear()
        self.asked["open"] = len(_opened)


def test_files_of_other_models_are_opened_once(
    release: Path, pack: Any, models: Path, hook: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is opened once, for its header; the next prompt uses the cached answers."""
    import folder_paths

    copy(release, models / "ovis_u1" / "tiny")
    foreign(models / "checkpoints", FOREIGN)
    loader = pack["OvisU1Loader"]
    inputs = {"model_name": "tiny", "weight_dtype": "default"}
    work = Work(models / "checkpoints", monkeypatch)
    with work:
        (options,) = [spec.options for spec in loader.GET_SCHEMA().inputs if spec.id == "model_name"]
    assert options == ["tiny", *([built_in.NAME] if built_in.is_there() else [])]
    assert work.asked["parse"] == 0
    assert work.asked["open"] == work.asked["stat"] == FOREIGN
    assert work.seconds < 10  # parsing took more than that on a fast machine; this takes about 0.2

    with work:  # the calls that ComfyUI makes for a prompt
        for _ in range(3):
            loader.INPUT_TYPES()
        assert loader.validate_inputs(model_name="tiny") is True
        loader.fingerprint_inputs(**inputs)
        loader.execute(**inputs)
    assert work.asked.total() == 0

    with work, folder_paths.cache_helper:  # the page asks for its list, as after R
        loader.GET_SCHEMA()
    assert work.asked == Counter(stat=FOREIGN)

    with work:  # a name without a model
        assert "'none' was not found; choose tiny" in loader.validate_inputs(model_name="none")
    assert work.asked["open"] == work.asked["parse"] == 0
    assert work.asked["stat"] <= 2 * FOREIGN

    whole_file(release, models / "checkpoints" / "ours.safetensors")
    with work:
        assert loader.validate_inputs(model_name="checkpoints/ours.safetensors") is True
    assert {path.name for path in _opened} == {"ours.safetensors"}


def test_checks_do_not_define_the_schema(pack: Any, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Defining it would list files."""
    for node in pack.values():
        node.GET_SCHEMA()  # as ComfyUI does when it loads a pack
    folders, search = (
        sys.modules[f"{PACK}.ovis_core.native.model_list.{name}"] for name in ("folders", "model_search")
    )
    asked = []
    monkeypatch.setattr(search, "find_models", lambda *_: asked.append("models") or {})
    monkeypatch.setattr(folders, "part_names", lambda *_: asked.append("parts") or [])
    for node in pack.values():
        copied = type(f"{node.__name__}Copy", node.__bases__, dict(vars(node)))  # as ComfyUI does for each run
        with pytest.raises(ValueError, match=r"^[a-z0-9_]+: "):
            copied.execute(**{spec.id: None for spec in copied.SCHEMA.inputs})
    assert asked == []


def test_file_that_changes_in_place_is_noticed(release: Path, models: Path) -> None:
    """One that is still being copied when it is listed first."""
    import folder_paths

    file = models / "checkpoints" / "ours.safetensors"
    file.write_bytes(b"\0" * 64)
    assert find() == {}
    whole_file(release, models / "whole.safetensors")
    with file.open("r+b") as sink:
        sink.write((models / "whole.safetensors").read_bytes())
    with folder_paths.cache_helper:
        assert list(find()) == ["checkpoints/ours.safetensors"]
    file.write_bytes(b"\0" * 64)
    assert "ours.safetensors is damaged or incomplete" in missing("checkpoints/ours.safetensors")


PLACES = {
    "ovis_u1/Ovis-U1-3B": "Ovis-U1-3B",
    "ovis_u1/AIDC-AI/Ovis-U1-3B": "AIDC-AI/Ovis-U1-3B",
    f"ovis_u1/models--AIDC-AI--Ovis-U1-3B/snapshots/{COMMIT}": f"models--AIDC-AI--Ovis-U1-3B/snapshots/{COMMIT}",
    "ovis/Ovis-U1-3B": "ovis/Ovis-U1-3B",
    "ovis/AIDC-AI/Ovis-U1-3B": "ovis/AIDC-AI/Ovis-U1-3B",
    "ovis": "ovis",
    "Ovis-U1-3B": "Ovis-U1-3B",
    "AIDC-AI/Ovis-U1-3B": "AIDC-AI/Ovis-U1-3B",
    "diffusers/Ovis-U1-3B": "diffusers/Ovis-U1-3B",
    "diffusion_models/AIDC-AI/Ovis-U1-3B": "diffusion_models/AIDC-AI/Ovis-U1-3B",
    "checkpoints/Ovis-U1-3B": "checkpoints/Ovis-U1-3B",
    "LLM/Ovis-U1-3B": "LLM/Ovis-U1-3B",
    **{
        place: place
        for place in (
            "llm/Ovis-U1-3B",
            "vlm/Ovis-U1-3B",
            "VLM/AIDC-AI/Ovis-U1-3B",
            "transformers/Ovis-U1-3B",
            "huggingface/AIDC-AI/Ovis-U1-3B",
            "Ovis_U1/Ovis-U1-3B",
            f"{HUB_FOLDER}/snapshots/{COMMIT}",
            f"ovis/{HUB_FOLDER}/snapshots/{COMMIT}",
            f"diffusers/{HUB_FOLDER}/snapshots/{COMMIT}",
            f"LLM/{HUB_FOLDER}/snapshots/{COMMIT}",
            f"LLM/mine/{HUB_FOLDER}/snapshots/{COMMIT}",
            f"checkpoints/hub/{HUB_FOLDER}/snapshots/{COMMIT}",
        )
    },
}


@pytest.mark.parametrize("place", PLACES)
def test_release_is_found_in_common_places(release: Path, models: Path, place: str, config: Any) -> None:
    assert find() == {}
    copy(release, models / place)
    assert find() == {PLACES[place]: models / place}
    assert missing(PLACES[place]) == ""
    assert open_model(find()[PLACES[place]]).config == config


def test_incomplete_release_in_another_folder_is_not_listed(release: Path, models: Path) -> None:
    folder = copy(release, models / "ovis" / "Ovis-U1-3B")
    shard = (folder / "model-00002-of-00002.safetensors").rename(models / "later")
    assert find() == {}
    assert "lacks model-00002-of-00002.safetensors" in missing("ovis/Ovis-U1-3B")
    assert "lacks model-00002-of-00002.safetensors" in missing("another")
    shard.rename(folder / "model-00002-of-00002.safetensors")
    assert list(find()) == ["ovis/Ovis-U1-3B"]


def test_extra_model_paths_for_ovis_and_ovis_u1(release: Path, models: Path, tmp_path: Path) -> None:
    """As ComfyUI does for a line of the file; `tests/server/test_text_to_image.py` uses a real file."""
    import folder_paths

    copy(release, tmp_path / "disk" / "here" / "AIDC-AI" / "Ovis-U1-3B")
    copy(release, tmp_path / "disk" / "mine" / "Ovis-U1-3B")
    assert find() == {}
    folder_paths.add_model_folder_path("ovis", str(tmp_path / "disk" / "here"))
    folder_paths.add_model_folder_path("ovis_u1", str(tmp_path / "disk" / "mine"))
    try:
        assert list(find()) == ["Ovis-U1-3B", "ovis/AIDC-AI/Ovis-U1-3B"]
    finally:
        del folder_paths.folder_names_and_paths["ovis"]


@pytest.mark.parametrize("kind", ["AIDC-AI", "Ovis", "ovis-u1", "Ovis-U1", "OVIS", "LLM", "vlm"])
def test_extra_model_paths_of_other_kinds(release: Path, models: Path, tmp_path: Path, kind: str) -> None:
    import folder_paths

    folder = copy(release, tmp_path / "disk" / "Ovis-U1-3B")
    assert find() == {}
    folder_paths.add_model_folder_path(kind, str(tmp_path / "disk"))
    try:
        assert find() == {f"{kind}/Ovis-U1-3B": folder}
        assert missing(f"{kind}/Ovis-U1-3B") == ""
    finally:
        del folder_paths.folder_names_and_paths[kind]
    assert find() == {}


@pytest.mark.parametrize("place", ["diffusers", "LLM", "ovis_u1", "ovis", "."])
def test_hub_cache_in_a_folder_of_models(
    release: Path, models: Path, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its revisions are listed, and its unfinished blobs are not reported."""
    snapshot = cache(release, models / place)
    blob = snapshot.parents[1] / "blobs" / "abc"
    blob.with_suffix(".incomplete").write_bytes(b"half")
    (snapshot.parents[1] / "blobs" / "model.safetensors").write_bytes(b"half")
    name = snapshot.relative_to(models / place if place == "ovis_u1" else models).as_posix()
    assert find() == {name: snapshot}
    assert missing(name) == ""
    assert not [record for record in caplog.records if str(models) in record.getMessage()]


@pytest.mark.skipif(os.name == "nt", reason="only administrators may make links")
def test_a_model_is_listed_once_if_links_lead_back(release: Path, models: Path) -> None:
    folder = copy(release, models / "ovis_u1" / "Ovis-U1-3B")
    for link, target in (("again", "."), ("up", ".."), ("inner/back", ".."), ("itself", "itself")):
        (models / "ovis_u1" / link).parent.mkdir(exist_ok=True)
        (models / "ovis_u1" / link).symlink_to(target, target_is_directory=True)
    assert find() == {"Ovis-U1-3B": folder}
    # A link to another folder is followed, also if the models are in that folder too.
    elsewhere = models.parent / "disk"
    shutil.move(folder, elsewhere / "Ovis-U1-3B")
    folder.symlink_to(elsewhere / "Ovis-U1-3B", target_is_directory=True)
    (models / "ovis_u1" / "disk").symlink_to(elsewhere, target_is_directory=True)
    assert find() == {"Ovis-U1-3B": folder, "disk/Ovis-U1-3B": models / "ovis_u1" / "disk" / "Ovis-U1-3B"}
    shutil.rmtree(models / "ovis_u1", ignore_errors=True)
    (models / "ovis_u1").symlink_to("ovis_u1", target_is_directory=True)
    assert find() == {}


def test_hub_cache_is_not_listed_twice(release: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(models / "huggingface"))
    assert find() == {}
    snapshot = cache(release, models / "huggingface" / "hub")
    assert find() == {"huggingface/AIDC-AI/Ovis-U1-3B": snapshot}


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "HOME"])
def test_hub_cache_is_listed(
    release: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, config: Any
) -> None:
    inside = {"HF_HOME": "hub", "XDG_CACHE_HOME": "huggingface/hub", "HOME": ".cache/huggingface/hub"}.get(variable, "")
    monkeypatch.delenv("HF_HOME")
    if variable == "HOME":
        monkeypatch.setenv("USERPROFILE", str(tmp_path / "place"))
    monkeypatch.setenv(variable, str(tmp_path / "place"))
    hub = tmp_path / "place" / inside
    name = "huggingface/AIDC-AI/Ovis-U1-3B"
    older = cache(release, hub, commit=OLDER)
    assert find() == {name: older}
    snapshot = cache(release, hub)
    assert find() == {name: snapshot}
    assert open_model(snapshot).config == config
    (snapshot / "model-00001-of-00002.safetensors").unlink()
    assert find() == {name: older}


def test_hub_cache_is_the_folder_of_the_hub_s_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    command = [sys.executable, "-c", "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"]
    names = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name in (None, *reversed(names)):
        if name:
            monkeypatch.setenv(name, f"~/{name}" if name != "XDG_CACHE_HOME" else str(tmp_path))
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        assert hub_cache.hub_cache() == Path(said).expanduser()


def another_model(folder: Path) -> None:
    value = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**value, "model_type": "qwen3"}))


def dangling(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("../../blobs/gone")


def unfinished(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "model-00001-of-00002.safetensors").rename(folder / "model-00001-of-00002.safetensors.abcd1234.part")


def empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def wider(folder: Path) -> None:
    value = json.loads((folder / "config.json").read_text())
    value["llm_config"]["hidden_act"] = "gelu"
    (folder / "config.json").write_text(json.dumps({**value, "model_type": "ovis"}))


FAULTS = {
    "no config": (
        lambda f: (f / "config.json").unlink(),
        "half has no config.json; copy the release's config.json into",
    ),
    "a config that is not JSON": (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
    "an empty config": (lambda f: (f / "config.json").write_text(""), "config.json is not JSON"),
    "another model's config": (another_model, "config.json: model_type: expected 'ovis_u1', got 'qwen3'"),
    "an older model's config": (wider, "config.json: model_type: expected 'ovis_u1', got 'ovis'"),
    "a link to nothing": (dangling, "config.json is a link to a missing file; replace it with the file"),
    "half a download": (unfinished, "half contains an unfinished download; run Ovis-U1 Download again"),
    "nothing": (empty, "half does not contain a model; put the files of AIDC-AI/Ovis-U1-3B into it"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_errors_for_unusable_folders(release: Path, models: Path, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    """Beside a good one, and in the log when the list is made."""
    damage, words = FAULTS[fault]
    copy(release, models / "ovis_u1" / "hidden")
    damage(copy(release, models / "ovis_u1" / "half"))
    said = missing("half")
    assert said.startswith("model_name: 'half' cannot be used: ")
    assert str(models / "ovis_u1" / "half") in said
    assert words in said
    assert missing("hidden") == ""
    assert "'other' was not found; choose hidden" in missing("other")
    logged = [record.getMessage() for record in caplog.records if "half" in record.getMessage()]
    assert len(logged) == (fault != "nothing")
    assert all(words in line for line in logged)


DEEPER = (
    "ovis_u1/AIDC-AI/half",
    "ovis_u1/a/b/half",
    "ovis/half",
    "ovis/AIDC-AI/half",
    "AIDC-AI/half",
    "ovis-of-mine/half",
    "diffusers/half",
    "LLM/AIDC-AI/half",
    "checkpoints/half",
    "vlm/models--me--mine/snapshots/half",
)


@pytest.mark.parametrize("place", DEEPER)
@pytest.mark.parametrize("fault", ["no config", "a config that is not JSON", "another model's config"])
def test_errors_for_broken_folders_in_any_place(
    release: Path, models: Path, place: str, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """By the names of its tensors, if it is in a folder that also contains other models."""
    damage, words = FAULTS[fault]
    copy(release, models / "ovis_u1" / "hidden")
    damage(copy(release, models / place))
    assert list(find()) == ["hidden"]
    logged = [record.getMessage() for record in caplog.records if str(models / place) in record.getMessage()]
    assert len(logged) == 1
    assert words in logged[0]
    for name in ("half", place.removeprefix("ovis_u1/")):
        said = missing(name)
        assert said.startswith(f"model_name: {name!r} cannot be used: {models / place}")
        assert words in said
    assert "'other' was not found; choose hidden" in missing("other")
    shutil.rmtree(models / "ovis_u1" / "hidden")
    assert words in missing("half")
    assert words in missing("other")


@pytest.mark.parametrize("place", ["half-ovis", "LLM/Ovis-U1-3B", "diffusers/my_ovis_u1"])
def test_errors_for_unusable_folders_named_ovis(
    release: Path, models: Path, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Even if none of its files can be recognised."""
    folder = copy(release, models / place)
    for shard in folder.glob("*.safetensors*"):
        shard.unlink()
    (folder / "model-00001-of-00002.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    (folder / "config.json").unlink()
    assert find() == {}
    assert [record.getMessage() for record in caplog.records if f"{folder} has no config.json" in record.getMessage()]
    assert f"{folder} has no config.json" in missing(folder.name)


def model_of_another(folder: Path, kind: str) -> None:
    folder.mkdir(parents=True)
    foreign(folder, 1)
    (folder / "0000.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    if kind:
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))


def test_other_models_are_not_reported(release: Path, models: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In folders that are not ours: complete or sharded, also by the same authors."""
    for place in ("diffusers/Wan", "LLM/Qwen3", "LLM/AIDC-AI/Ovis2-8B", "AIDC-AI/Ovis2.5-2B", "ovis/Ovis1.6-Gemma2-9B"):
        model_of_another(models / place, "another")
        model_of_another(models / f"{place}-half", "")
        (models / f"{place}-half" / "model-00002-of-00002.safetensors.part").write_bytes(b"half")
    model_of_another(models / "diffusers" / "Ovis-Image-7B", "")
    model_of_another(models / "diffusers" / "models--AIDC-AI--Ovis2-8B" / "snapshots" / COMMIT, "")
    model_of_another(models / "LLM" / "ovis", "ovis")
    (models / "diffusers" / "ovis-u1" / "vae").mkdir(parents=True)
    (models / "diffusers" / "broken").mkdir()
    (models / "diffusers" / "broken" / "config.json").write_text("{")
    (models / "text_encoders" / "ovis_u1").mkdir()
    save_file(load_file(next(release.glob("*.safetensors"))), models / "text_encoders" / "ovis_u1" / "part.safetensors")
    (models / "checkpoints" / "sub").mkdir()
    foreign(models / "checkpoints" / "sub", 1)
    (models / "checkpoints" / "sub" / "0000.safetensors").rename(models / "checkpoints" / "ovis_image.safetensors")
    foreign(models / "ovis", 1)
    assert find() == {}
    assert not [record.getMessage() for record in caplog.records if str(models) in record.getMessage()]
    assert "no Ovis-U1 model was found; run Ovis-U1 Download" in missing("another")


def without_config(root: Path, release: Path) -> None:
    for file in release.iterdir():
        if file.name != "config.json":
            place(file, root / file.name)


def only_config(root: Path, release: Path) -> None:
    (root / "config.json").write_text("{")


def half_a_file(root: Path, release: Path) -> None:
    file = whole_file(release, root / "all.safetensors")
    file.write_bytes(file.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("put", "words"),
    [
        (without_config, "{root} has no config.json; copy the release's config.json into it"),
        (only_config, "{root}/config.json is not JSON"),
        (half_a_file, "{root}/all.safetensors is damaged or incomplete"),
    ],
)
@pytest.mark.parametrize("place", ["ovis_u1", "ovis_u1/AIDC-AI", "ovis"])
def test_errors_for_files_directly_in_a_folder_of_models(
    release: Path, models: Path, place: str, put: Any, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    (models / place).mkdir(parents=True, exist_ok=True)
    put(models / place, release)
    words = words.format(root=models / place).replace("/", os.sep)
    assert find() == {}
    assert sum(words in record.getMessage() for record in caplog.records) == 1
    assert f"no Ovis-U1 model was found: {words}" in missing("Ovis-U1-3B")
    assert words in missing(place.rsplit("/")[-1])
    copy(release, models / "ovis_u1" / "hidden")
    if put is half_a_file:
        assert f"'all.safetensors' cannot be used: {words}" in missing("all.safetensors")


@pytest.mark.parametrize("place", ["ovis_u1/sub", "ovis_u1/a/b", "ovis", "ovis/sub", "AIDC-AI"])
def test_file_with_all_parts_is_listed(release: Path, models: Path, place: str) -> None:
    (models / place).mkdir(parents=True, exist_ok=True)
    assert find() == {}
    file = whole_file(release, models / place / "all.safetensors")
    name = f"{place}/all.safetensors".removeprefix("ovis_u1/")
    assert find() == {name: file}
    assert missing(name) == ""


@pytest.mark.parametrize("place", ["diffusers/all.safetensors", "ovis_u1/a/b/c/d/all.safetensors", "LLM/a/b/c/d"])
def test_error_for_a_model_in_a_folder_that_is_not_searched(release: Path, models: Path, place: str) -> None:
    (models / place).parent.mkdir(parents=True, exist_ok=True)
    if place.endswith(".safetensors"):
        write_one(open_model(release), models / place, PRECISIONS["default"], lambda *_: None)
    else:
        copy(release, models / place)
    assert find() == {}
    words = f"is a complete model, but its folder is not searched; move it into {models / 'ovis_u1'}."
    assert f"{models / place} {words}" in missing(place.removeprefix("ovis_u1/"))


@pytest.mark.parametrize("place", ["ovis_u1", "ovis_u1/sub", "ovis"])
def test_error_for_a_release_file_without_its_config(release: Path, models: Path, place: str, config: Any) -> None:
    """Its tensors have the release's names, so it needs what a release needs."""
    (models / place).mkdir(exist_ok=True)
    tensors = {f"{layout.DECODER}{name}": tensor for name, tensor in metadata(decoder=config.decoder).items()}
    tensors |= metadata(language=config.language, vision=config.vision)
    for shard in release.glob("*.safetensors"):
        tensors |= load_file(shard)
    file = models / place / "all.safetensors"
    save_file(tensors, file)
    assert find() == {}
    words = (
        "has the tensor names of a release; rename it to model.safetensors and put the release's config.json into its "
        "folder."
    )
    assert f"no Ovis-U1 model was found: {file} {words}" in missing("x")
    name = f"{place}/all.safetensors".removeprefix("ovis_u1/")
    assert missing(name) == f"model_name: {name!r} cannot be used: {file} {words}"
    file.rename(file.with_name("model.safetensors"))
    shutil.copy(release / "config.json", models / place)
    assert list(find().values()) == [models / place]
    assert open_model(models / place).config == config


def test_error_for_a_folder_with_a_model_inside(release: Path, models: Path) -> None:
    """The message depends on the folder inside."""
    inner = copy(release, models / "ovis_u1" / "half" / "Ovis-U1-3B")
    assert "the model in" in missing("half")
    assert "has the name 'half/Ovis-U1-3B' in the list; choose that name" in missing("half")
    assert "has the name 'half/Ovis-U1-3B' in the list; choose that name" in missing("half/Ovis-U1-3B/")
    (inner / "config.json").unlink()
    assert f"'half' cannot be used: {inner} has no config.json" in missing("half")
    assert f"'Ovis-U1-3B' cannot be used: {inner} has no config.json" in missing("Ovis-U1-3B")


def test_error_for_a_damaged_file_in_checkpoints(release: Path, models: Path) -> None:
    (models / "checkpoints" / "sub").mkdir()
    half_a_file(models / "checkpoints" / "sub", release)
    file = models / "checkpoints" / "sub" / "all.safetensors"
    assert "no Ovis-U1 model was found; run" in missing("x")
    file = file.rename(file.with_name("Ovis-U1-3B.safetensors"))
    assert f"{file} is damaged or incomplete" in missing("x")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="everything is permitted to root")
def test_errors_without_read_permission(release: Path, models: Path) -> None:
    copy(release, models / "ovis_u1" / "hidden")
    folder = copy(release, models / "ovis_u1" / "half")
    folder.chmod(0)
    try:
        assert "half cannot be read (Permission denied); check its permissions" in missing("half")
    finally:
        folder.chmod(0o700)
    (folder / "config.json").chmod(0)
    assert "config.json cannot be read (Permission denied)" in missing("half")
    (folder / "config.json").chmod(0o600)
    assert missing("half") == ""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="everything is permitted to root")
@pytest.mark.parametrize("mode", [0, 0o444, 0o111])
def test_unreadable_folders_do_not_prevent_listing(release: Path, models: Path, mode: int) -> None:
    """They prevent neither the listing of a good folder nor a message."""
    copy(release, models / "ovis_u1" / "hidden")
    closed = [models / place for place in ("ovis_u1/half", "ovis_u1/deep", "diffusers/half", "LLM/Ovis-U1", "ovis")]
    for folder in closed:
        copy(release, folder / "inner")
        folder.chmod(mode)
    try:
        assert "hidden" in find()
        assert missing("hidden") == ""
        assert missing("half")
        assert missing("diffusers/half/inner/x")
        assert missing("other")
    finally:
        for folder in closed:
            folder.chmod(0o700)


@pytest.mark.parametrize("place", ["ovis_u1", "checkpoints"])
def test_errors_for_unusable_files(release: Path, models: Path, place: str) -> None:
    copy(release, models / "ovis_u1" / "hidden")
    name = "one.safetensors" if place == "ovis_u1" else f"{place}/one.safetensors"
    file = whole_file(release, models / place / "one.safetensors")
    assert missing(name) == ""
    whole = file.read_bytes()
    for content, words in (
        (whole[: len(whole) // 2], "one.safetensors is damaged or incomplete"),
        (whole[:100], "one.safetensors is damaged or incomplete"),
        (b"", "one.safetensors is empty"),
        (b"<!doctype html>", "one.safetensors is a web page"),
        (b"\xff" * 300, "one.safetensors is damaged or incomplete"),
    ):
        file.write_bytes(content)
        said = missing(name)
        assert said.startswith(f"model_name: {name!r} cannot be used: {models / place}")
        assert words in said
    foreign(models / place, 1)
    said = missing(name.replace("one", "0000"))
    assert "0000.safetensors: missing tensor " in said
    assert "it has no Ovis-U1 diffusion model" in said


@pytest.mark.parametrize("name", ["", "../ovis_u1/hidden", "/etc", "ovis/../ovis_u1/half", None, ["half"], 3])
def test_names_outside_the_folder_are_not_opened(release: Path, models: Path, name: Any) -> None:
    copy(release, models / "ovis_u1" / "hidden")
    empty(copy(release, models / "ovis_u1" / "half"))
    assert missing(name) == (
        f"model_name: {name!r} was not found; choose hidden, or add the model and press R to refresh."
    )


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    yield
    _listening.clear()
