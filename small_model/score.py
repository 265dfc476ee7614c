"""How good the trained stages are, on combinations and phrasings that training never uses: `score.py --folder FOLDER`.

It runs the cases of `cases.py` through the networks in plain torch, but for edits inside a mask.
`evaluation/evaluate.py shapes` scores the exported checkpoint in ComfyUI.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import flat_shapes
import phrasings
import stage_decoder
import stage_language
import stage_vae
import torch
from cases import Case, answer_verdict, first_cases, shares
from networks import (
    TOKENS,
    Conditioner,
    after_picture,
    encode,
    encode_images,
    join,
    logits,
    positions,
    prompts,
    row,
    states,
    to_patches,
)
from torch import Tensor

from console import chosen_names, guarded, positive_int

Scores = dict[str, float]
TASKS = ("ask", "judge", "paint", "edit")
TXT_CFG, EDIT_TXT_CFG, EDIT_IMG_CFG = 5.0, 6.0, 1.5
SHEET_COLUMNS = 8
MAX_NEW_TOKENS = 20


class Scorer:
    """The trained stages of one folder."""

    def __init__(self, folder: Path, held_out: bool = True) -> None:
        self.held_out = held_out
        self.model = stage_language.load(folder)
        self.conditioner = Conditioner(self.model)
        if (folder / "vae.safetensors").is_file():
            self.vae = stage_vae.load(folder)
        if (folder / "decoder.safetensors").is_file():
            self.decoder = stage_decoder.load(folder)
            self.blank, self.blank_kept = stage_decoder.blank_prefix(self.conditioner)
            self.without_text = torch.cat((self.blank, *self._texts([prompts.unconditional()], self.blank_kept, [0])))

    def _texts(self, asked: list, kept: list, owner: list[int]) -> list[Tensor]:
        return self.conditioner.text([after_picture(parts) for parts in asked], kept, owner)

    def _cases(self, task: str, count: int) -> list[Case]:
        return first_cases(task, count, self.held_out)

    # ---- pictures

    def painted(self, count: int) -> tuple[Scores, list[tuple[str, Tensor]]]:
        """Text to image."""
        scenes, texts = zip(*((case.scene, case.prompt) for case in self._cases("paint", count)), strict=True)
        own = self._texts([prompts.text_to_image(text) for text in texts], self.blank_kept, [0] * count)
        conditions = [torch.cat((self.blank, text)) for text in own]
        pictures = self._sample(
            conditions, lambda c, _: [(self.without_text.expand(len(c), -1, -1), ()), (c, ())], [TXT_CFG]
        )
        return self._judged("paint", pictures, scenes), list(zip(texts, pictures, strict=True))

    def edited(self, count: int) -> tuple[Scores, list]:
        """Edits, a third of each kind."""
        conditions, plain, sources, befores = [], [], [], []
        cases = self._cases("edit", count)
        for case in cases:
            picture = flat_shapes.draw(case.sources)
            prefix, kept = self.conditioner.picture(picture)
            asked, without = self._texts([prompts.about_image(case.prompt), prompts.unconditional()], kept, [0, 0])
            conditions.append(torch.cat((prefix[0], asked)))
            plain.append(torch.cat((prefix[0], without)))
            sources.append(stage_vae.to_latents(self.vae, picture)[0])
            befores.append(picture[0])

        def branches(c: Tensor, part: list[int]) -> list[stage_decoder.Branch]:
            reference = (torch.stack([sources[i] for i in part]),)
            image_only = torch.stack([plain[i] for i in part])
            return [(self.without_text.expand(len(c), -1, -1), ()), (image_only, reference), (c, reference)]

        pictures = self._sample(conditions, branches, [EDIT_IMG_CFG, EDIT_TXT_CFG])
        scores = self._judged("edit", pictures, [case.scene for case in cases])
        for kind in dict.fromkeys(case.kind for case in cases):
            mine = [i for i, case in enumerate(cases) if case.kind == kind]
            judged = self._judged("edit", [pictures[i] for i in mine], [cases[i].scene for i in mine])
            scores |= {f"edit {kind}": judged["edit right and kept"]}
        return scores, [(case.prompt, *pair) for case, *pair in zip(cases, befores, pictures, strict=True)]

    def _sample(self, conditions: list[Tensor], branches: Callable, scales: list[float]) -> list[Tensor]:
        generator = torch.Generator().manual_seed(7)
        noise = torch.randn(len(conditions), 4, 16, 16, generator=generator)
        out: list[Tensor] = [torch.empty(0)] * len(conditions)
        lengths: dict[int, list[int]] = {}
        for i, condition in enumerate(conditions):
            lengths.setdefault(len(condition), []).append(i)
        for members in lengths.values():
            for begin in range(0, len(members), 16):
                part = members[begin : begin + 16]
                c = torch.stack([conditions[i] for i in part])
                z = stage_decoder.sample(self.decoder, noise[part], branches(c, part), scales)
                for i, picture in zip(part, stage_vae.to_pictures(self.vae, z), strict=True):
                    out[i] = picture
        return out

    def _judged(self, name: str, pictures: list[Tensor], scenes: list[flat_shapes.Scene]) -> Scores:
        recognised = [flat_shapes.recognise(picture) for picture in pictures]
        pairs = list(zip(recognised, scenes, strict=True))
        whole = [(a.shapes[0] if a.shapes else None, b.shape) for a, b in pairs]
        return {
            f"{name} shape": _share(a is not None and a.kind == b.kind for a, b in whole),
            f"{name} colour": _share(a is not None and a.colour == b.colour for a, b in whole),
            f"{name} background": _share(a.background == b.background for a, b in pairs),
            f"{name} right": _share(flat_shapes.same(a, b) for a, b in pairs),
            f"{name} right and kept": _share(flat_shapes.same(a, b) and flat_shapes.kept(a, b) for a, b in pairs),
            f"{name} fit": sum(a.fit if a else 0 for a, _ in whole) / len(whole),
        }

    # ---- answers

    def answered(self, count: int) -> tuple[Scores, list[tuple[str, str, str]]]:
        """Questions of every kind, descriptions, and the second question of a chat."""
        verdicts, shown = [], []
        for case in (case for task in ("ask", "describe", "chat") for case in self._cases(task, count)):
            patches = to_patches(flat_shapes.draw(case.sources), False)
            embeddings, *_ = encode_images(self.model, patches, torch.arange(TOKENS)[None])
            first, *more = case.prompt.splitlines()
            said = self.write(embeddings, prompts.question(first, 1))
            for again in more:
                before = [*prompts.answer_start(), said, *prompts.answer_end()]
                said = self.write(embeddings, [*prompts.question(first, 1), *before, *prompts.user_turn([again])])
            verdicts.append((case, answer_verdict(case, said)[0]))
            shown.append((case.prompt.replace("\n", " "), case.answer, said))
        return {name: share["right"] for name, share in shares(verdicts).items()}, shown

    def write(self, embeddings: Tensor, parts: list) -> str:
        """The answer to a prompt about one image, with its embeddings; each token is the likeliest."""
        from networks import tokenizer, used_tokens

        ids = encode([*parts, *prompts.answer_start()])
        written: list[int] = []
        end = row(prompts.Control.TURN_END)
        while len(written) < MAX_NEW_TOKENS:
            all_ids = torch.tensor([ids + written])
            at = positions(torch.arange(TOKENS)[None], all_ids.shape[1])
            final, _ = states(self.model, join(self.model, all_ids, embeddings), at)
            best = int(logits(self.model, final[0, -1:]).argmax())
            if best == end or best >= len(used_tokens()):
                break
            written.append(best)
        return tokenizer().decode([used_tokens()[i] for i in written])

    def chosen(self, count: int) -> Scores:
        """Of four pictures the one that fits a caption, by the probability of yes."""
        hits = []
        yes, no = (encode([word])[0] for word in ("yes", "no"))
        at = torch.arange(TOKENS).expand(4, -1)
        for case in self._cases("judge", count):
            question = phrasings.QUESTIONS["judge"][0].format(d=case.prompt)
            embeddings, *_ = encode_images(self.model, to_patches(flat_shapes.draw(case.sources), False), at)
            ids = torch.tensor([encode([*prompts.question(question, 1), *prompts.answer_start()])]).expand(4, -1)
            final, _ = states(self.model, join(self.model, ids, embeddings), positions(at, ids.shape[1]))
            answer = logits(self.model, final[:, -1])
            hits.append(answer_verdict(case, str(int((answer[:, yes] - answer[:, no]).argmax()) + 1))[0])
        return {"judge": _share(hits)}


def _share(values: object) -> float:
    values = list(values)
    return sum(values) / max(1, len(values))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Score the trained stages in a folder.")
    parser.add_argument("--folder", type=Path, default=Path("small_model_run"), help="folder of the stages")
    parser.add_argument("--count", type=positive_int, default=200, help="cases of each task")
    parser.add_argument("--tasks", help="tasks to score, separated by commas (default: all)")
    parser.add_argument(
        "--training-cases", action="store_true", help="score cases that training uses, instead of new ones"
    )
    args = parser.parse_args()
    tasks = chosen_names("--tasks", args.tasks, TASKS)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    begun = time.time()
    scorer = Scorer(args.folder, not args.training_cases)
    scores: Scores = {}
    if "ask" in tasks:
        found, shown = scorer.answered(args.count)
        scores |= found
        for question, answer, said in shown[:12]:
            print(f"  {question} -> {said!r}" + ("" if said == answer else f", not {answer!r}"))
    if "judge" in tasks:
        scores |= scorer.chosen(args.count)
    if "paint" in tasks:
        found, shown = scorer.painted(args.count)
        scores |= found
        sheet([(text, picture) for text, picture in shown[:32]], args.folder / "painted.png")
    if "edit" in tasks:
        found, shown = scorer.edited(args.count)
        scores |= found
        sheet(
            [pair for text, before, after in shown[:24] for pair in (("", before), (text, after))],
            args.folder / "edited.png",
        )
    print(
        json.dumps({name: round(value, 3) for name, value in scores.items()}, indent=1), f"{time.time() - begun:.0f} s"
    )
    return 0


def sheet(pictures: list[tuple[str, Tensor]], file: Path) -> None:
    """Saves pictures in rows, with their words below."""
    from PIL import Image, ImageDraw

    rows, cell = -(-len(pictures) // SHEET_COLUMNS), flat_shapes.SIDE + 4
    page = Image.new("RGB", (SHEET_COLUMNS * cell, rows * (cell + 12)), (128, 128, 128))
    for i, (text, picture) in enumerate(pictures):
        x, y = i % SHEET_COLUMNS * cell, i // SHEET_COLUMNS * (cell + 12)
        page.paste(flat_shapes.to_image(picture), (x, y))
        ImageDraw.Draw(page).text((x + 1, y + flat_shapes.SIDE), text[:22], fill=(255, 255, 255))
    page.save(file)


if __name__ == "__main__":
    sys.exit(guarded(main))
