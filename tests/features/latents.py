"""Latents, masks, batches and tiles."""

from __future__ import annotations

import torch

from .table import HEIGHT, WIDTH, Bench, Lab, apart, other, row, same

AREA = "latents"


@row(AREA, "EmptyLatentImage", "swapped sides give another image, with swapped sides")
def empty(lab: Lab) -> None:
    bench = lab.bench(width=HEIGHT, height=WIDTH)
    latent = bench.sampled()
    assert latent.shape == (1, 4, WIDTH // 8, HEIGHT // 8)
    assert latent.isfinite().all()


@row(AREA, "img2img at denoise 0.5", "lies between the source image and a new image")
def image_to_image(lab: Lab) -> None:
    bench = lab.bench()
    start = bench.ksampler()
    half = bench.ksampler(latent_image=start, denoise=0.5, seed=8)
    new = bench.ksampler(seed=8)
    begun, kept, fresh = bench.run(start, half, new)
    other(kept, begun)
    assert apart(kept, begun) < apart(fresh, begun)


@row(
    AREA, "LatentUpscale, second pass", "the size doubles, and the image is nearer to the first one than a new image is"
)
def second_pass(lab: Lab) -> None:
    bench = lab.bench()
    start = bench.ksampler()
    size = {"width": 2 * WIDTH, "height": 2 * HEIGHT, "upscale_method": "bilinear", "crop": "disabled"}
    larger = bench.node("LatentUpscale", samples=start, **size)
    again, new = (bench.ksampler(latent_image=larger, denoise=denoise, steps=6) for denoise in (0.3, 1.0))
    upscaled, refined, fresh = bench.run(larger, again, new)
    assert refined.shape == (1, 4, HEIGHT // 4, WIDTH // 4)
    other(refined, upscaled)
    assert apart(refined, upscaled) < 0.7 * apart(fresh, upscaled)


def right_half(bench: Bench) -> list[object]:
    black = bench.node("SolidMask", value=0.0, width=WIDTH, height=HEIGHT)
    white = bench.node("SolidMask", value=1.0, width=WIDTH // 2, height=HEIGHT)
    return bench.node("MaskComposite", destination=black, source=white, x=WIDTH // 2, y=0, operation="add")


def half_is_kept(begun: torch.Tensor, latent: torch.Tensor) -> None:
    middle = WIDTH // 16
    same(latent[..., :middle], begun[..., :middle])
    other(latent[..., middle:], begun[..., middle:])


@row(AREA, "SetLatentNoiseMask", "outside the mask the latent stays as it is")
def noise_mask(lab: Lab) -> None:
    bench = lab.bench()
    start = bench.ksampler()
    masked = bench.node("SetLatentNoiseMask", samples=start, mask=right_half(bench))
    half_is_kept(*bench.run(start, bench.ksampler(latent_image=masked, seed=8)))


@row(AREA, "InpaintModelConditioning", "outside the mask the latent stays as it is")
def inpaint(lab: Lab) -> None:
    bench = lab.bench()
    image = bench.node("EmptyImage", width=WIDTH, height=HEIGHT, batch_size=1, color=0x336699)
    given = {"positive": bench.positive, "negative": bench.negative, "vae": bench.vae, "pixels": image}
    node, _ = bench.node("InpaintModelConditioning", **given, mask=right_half(bench), noise_mask=True)
    sampled = bench.ksampler(positive=[node, 0], negative=[node, 1], latent_image=[node, 2])
    half_is_kept(*bench.run([node, 2], sampled))


@row(AREA, "DifferentialDiffusion", "a grey mask changes the area that it covers in part; outside it the latent stays")
def differential(lab: Lab) -> None:
    bench = lab.bench()
    start = bench.ksampler()
    black = bench.node("SolidMask", value=0.0, width=WIDTH, height=HEIGHT)
    grey = bench.node("SolidMask", value=0.5, width=WIDTH // 2, height=HEIGHT)
    mask = bench.node("MaskComposite", destination=black, source=grey, x=WIDTH // 2, y=0, operation="add")
    masked = bench.node("SetLatentNoiseMask", samples=start, mask=mask)
    model = bench.node("DifferentialDiffusion", model=bench.model)
    given = {"latent_image": masked, "seed": 8, "steps": 6}
    begun, hard, soft = bench.run(start, bench.ksampler(**given), bench.ksampler(model=model, **given))
    half_is_kept(begun, soft)
    other(soft, hard)


@row(AREA, "RepeatLatentBatch, LatentFromBatch", "an image of a batch equals the image that is made alone")
def batches(lab: Lab) -> None:
    bench = lab.bench()
    start = bench.ksampler()
    three = bench.node("RepeatLatentBatch", samples=start, amount=3)
    second = bench.node("LatentFromBatch", samples=three, batch_index=1, length=1)
    many = bench.ksampler(latent_image=three, denoise=0.5)
    alone = bench.ksampler(latent_image=second, denoise=0.5)
    picked = bench.node("LatentFromBatch", samples=many, batch_index=1, length=1)
    all_three, one, two = bench.run(many, alone, picked)
    assert all_three.shape[0] == 3
    same(two, one)
    other(all_three[0], all_three[1])


@row(AREA, "VAEDecodeTiled, VAEEncodeTiled", "near the result in one piece, except at the borders of tiles")
def tiles(lab: Lab) -> None:
    bench = lab.bench(width=640, height=512)
    image = bench.node("LoadImage", image=lab.noise_picture(640, 512))
    whole = bench.node("VAEEncode", pixels=image, vae=bench.vae)
    given = {"tile_size": 512, "overlap": 64, "temporal_size": 64, "temporal_overlap": 8}
    tiled = bench.node("VAEEncodeTiled", pixels=image, vae=bench.vae, **given)
    back = bench.node("VAEDecodeTiled", samples=whole, vae=bench.vae, **given)
    plain = bench.node("VAEDecode", samples=whole, vae=bench.vae)
    again, once = (bench.node("VAEEncode", pixels=pixels, vae=bench.vae) for pixels in (back, plain))
    one, two, three, four = bench.run(whole, tiled, again, once)
    assert one.shape == two.shape == three.shape
    # A random VAE's norms see each tile alone, so its tiles differ more than a trained one's.
    assert apart(two, one) < 0.2
    assert apart(three, four) < 0.2
