"""The training of the small model: its scenes, the pack's own networks over batches, and runs that resume."""

from __future__ import annotations

import os
import sys
from itertools import product
from pathlib import Path
from random import Random

import pytest
import torch

from helpers.compare import close
from helpers.paths import ROOT, comfyui_path

sys.path.insert(0, str(ROOT / "small_model"))
os.environ.setdefault("COMFYUI_PATH", str(comfyui_path()))

import flat_shapes
import networks
import phrasings
import stage_decoder
import stage_language
import stage_vision
import training


@pytest.mark.parametrize("shapes", [1, 2])
def test_drawn_scenes_are_recognised(shapes: int) -> None:
    rng = Random(3)
    scenes = [flat_shapes.make_scene(rng, test, shapes) for test in (False, True) for _ in range(60)]
    for scene, picture in zip(scenes, flat_shapes.draw(scenes), strict=True):
        found = flat_shapes.recognise(picture)
        assert flat_shapes.same(found, scene)
        assert flat_shapes.kept(found, scene, pixels=2)
        assert [(shape.size, shape.place) for shape in found.shapes][: shapes == 1] == [
            (shape.size, shape.place) for shape in scene.shapes
        ][: shapes == 1]
        assert min(shape.fit for shape in found.shapes) > 0.9


def test_wrong_scenes_are_detected() -> None:
    rng = Random(4)
    for kind in phrasings.EDITS:
        scene = flat_shapes.make_scene(rng, False)
        _, other = phrasings.edit(scene, kind, rng)
        assert not flat_shapes.same(flat_shapes.recognise(flat_shapes.draw([other])[0]), scene)
    assert flat_shapes.recognise(torch.rand(3, 128, 128)).background in flat_shapes.COLOURS
    assert not flat_shapes.recognise(torch.full((3, 128, 128), 0.95)).shapes


def test_training_never_uses_held_out_combinations() -> None:
    combinations = [c for c in product(flat_shapes.KINDS, flat_shapes.COLOURS, flat_shapes.COLOURS) if c[1] != c[2]]
    share = sum(flat_shapes.held_out(*c) for c in combinations) / len(combinations)
    assert 0.15 < share < 0.3
    for kind in flat_shapes.KINDS:  # and every word is met in training
        assert any(c[0] == kind and not flat_shapes.held_out(*c) for c in combinations)
    for part in range(2):
        for scenes in stage_decoder.families(part):
            assert not any(flat_shapes.is_held_out(scene) for scene in scenes)


def test_training_never_uses_held_out_phrasings() -> None:
    for trained, new in (
        (phrasings.CAPTIONS, phrasings.NEW_CAPTIONS),
        (phrasings.FOLLOW_UPS, phrasings.NEW_FOLLOW_UPS),
    ):
        assert not set(trained) & set(new)
    for trained, new in ((phrasings.EDITS, phrasings.NEW_EDITS), (phrasings.QUESTIONS, phrasings.NEW_QUESTIONS)):
        same = {kind for kind in trained if set(trained[kind]) & set(new[kind])}
        assert same <= {"judge"}  # whose question is the node's own


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return networks.make_multimodal().requires_grad_(False)


def test_conditions_of_batches_match_the_pack(model: torch.nn.Module) -> None:
    core, prompts = networks.core, networks.prompts
    scene = flat_shapes.make_scene(Random(0), False)
    picture = (flat_shapes.draw([scene]) * 255).round() / 255
    source = core.pixels.condition_input(core.pixels.to_pil(picture[0].permute(1, 2, 0)))
    patches = networks.to_patches(picture, for_condition=True)
    assert (patches.flatten(0, 2) - source.patches).abs().max() < 1.01 / 255 / min(core.pixels.STD)

    conditioner = networks.Conditioner(model)
    prefix, kept = conditioner.picture(picture)
    for parts in (prompts.about_image("make it red"), prompts.unconditional()):
        (text,) = conditioner.text([networks.after_picture(parts)], kept, [0])
        rows = {token: row for row, token in enumerate(networks.used_tokens())}
        ids = [rows[t] if isinstance(t, int) else source for t in networks.tokenizer().encode(parts)]
        expected = model.condition(ids, torch.device("cpu"), torch.float32)[0]
        # The two differ by one step of 8 bits in a few pixels, because PIL's sums round differently at halves.
        close(torch.cat((prefix[0], text)), expected, 5e-3)


def test_visual_tokens_match_the_pack(model: torch.nn.Module) -> None:
    core = networks.core
    scene = flat_shapes.make_scene(Random(1), False)
    picture = core.pixels.to_pil(flat_shapes.draw([scene])[0].permute(1, 2, 0))
    source = core.pixels.understanding_input([picture])
    expected = model.encode_image(source, torch.device("cpu"), torch.float32)[1:-1]
    patches = source.patches.view(1, networks.TOKENS, networks.PATCHES, -1)
    embeddings, *_ = networks.encode_images(model, patches, torch.arange(networks.TOKENS)[None])
    close(embeddings[0], expected)


@pytest.mark.parametrize("for_condition", [False, True])
def test_patches_of_chosen_tokens_match_the_whole_image(for_condition: bool) -> None:
    pictures = flat_shapes.draw([flat_shapes.make_scene(Random(seed), False, 1 + seed) for seed in (0, 1)])
    chosen = torch.tensor([[0, 17, 130, 255], [15, 16, 239, 240]])
    whole = networks.to_patches(pictures, for_condition)
    expected = torch.stack([patches[which] for patches, which in zip(whole, chosen, strict=True)])
    assert torch.equal(networks.to_patches(pictures, for_condition, chosen), expected)


def test_outlines_have_the_directions_of_the_shape() -> None:
    """Of a square two, of a triangle three, of a circle all."""
    for kind, count in (("square", 2), ("triangle", 3), ("circle", stage_vision.DIRECTIONS)):
        scene = flat_shapes.Scene("red", (flat_shapes.Shape(kind, "blue", "large", "", 64, 64, 40),))
        found = stage_vision.outlines(scene).flatten().bincount(minlength=stage_vision.DIRECTIONS + 1)
        assert int((found[:-1] > 5).sum()) == count
        assert int(found[-1]) > found[:-1].sum()


def test_targets_of_visual_tokens_match_the_scene(model: torch.nn.Module) -> None:
    """The targets of the visual tokens: a shape's kind and colour at its place, the background elsewhere."""
    scene = flat_shapes.make_scene(Random(2), False)
    targets = stage_vision.regions(scene)
    ground = stage_language.COLOURS.index(scene.background)
    assert targets[0].tolist() == [0, ground, ground]
    at = int(scene.shape.y // networks.REGION) * networks.GRID + int(scene.shape.x // networks.REGION)
    kind, colour = stage_language.attributes(scene)[:2]
    assert targets[at].tolist() == [kind + 1, colour, ground]


def test_stopped_run_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    def train(folder: Path, *stops: int) -> torch.Tensor:
        for stop in stops:
            torch.manual_seed(0)
            layer = torch.nn.Linear(6, 6)
            optimizers = [training.Muon([layer.weight], 1e-2), torch.optim.AdamW([layer.bias], 1e-2)]

            def step(
                i: int, steps: int, layer: torch.nn.Linear = layer, optimizers: list = optimizers
            ) -> dict[str, float]:
                loss = (layer(torch.randn(4, 6)) - 1).square().mean()
                for optimizer in optimizers:
                    optimizer.zero_grad()
                loss.backward()
                for optimizer in optimizers:
                    optimizer.step()
                return {"loss": loss.item()}

            training.Run(folder, "run", {"model": layer}, optimizers).train(step, stop)
        return torch.cat((layer.weight.flatten(), layer.bias)).detach()

    whole = train(tmp_path / "a", 8)
    assert torch.equal(train(tmp_path / "b", 3, 8), whole)
    assert training.saved_steps(tmp_path / "b" / "run.safetensors") == 8
    assert not torch.equal(train(tmp_path / "c", 7), whole)
