"""The whole way on SD1.5, SD2 and SDXL *architectures* in the hub's layout.

Random weights at reduced width, since no hub can be reached here. Real weights have not been run.
"""
import numpy as np
import pytest
import torch
from conftest import make_workspace, quiet

SIZE, STEPS, GUIDANCE = (64, 64), 4, 3.


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    from hgdpo_curate.toy.layouts import random_sd15
    return random_sd15(tmp_path_factory.mktemp('sd15')/'model')


@pytest.fixture
def pipe(base):
    from hgdpo_curate.pipelines import load_pipeline
    return load_pipeline(base, 'cpu')


def pixels(image): return np.asarray(image).astype(int)
def seed(n): return torch.Generator().manual_seed(int(n))


@pytest.mark.parametrize('family', ['sd15', 'sd2', 'sdxl'])
def test_pool_to_lora_and_back_through_plain_diffusers(family, tmp_path):
    "SD1.5 predicts noise, SD2 velocity; SDXL has two text encoders, pooled embeddings and time ids."
    import diffusers
    from safetensors.torch import load_file

    from hgdpo_curate import freeze_split, train_curriculum
    from hgdpo_curate.adapters import twin_file
    from hgdpo_curate.families import family_in
    from hgdpo_curate.toy import layouts
    base = getattr(layouts, f'random_{family}')(tmp_path/'model')
    ws = make_workspace(
        tmp_path / 'ws',
        base,
        photos=4,
        size='64x64',
        steps=STEPS,
        n=2,
    )
    freeze_split(ws, 'v1', 'chance')
    counts = {
        s: len(df) for s, df in __import__('hgdpo_curate').load_split(ws).items() if s in ('easy', 'normal', 'hard')
    }
    if not counts['normal']: pytest.fail(f'the drawn pool should leave normal pairs, has {counts}')
    run = train_curriculum(
        ws,
        preset='mannequin',
        max_train_steps=1,
        train_batch_size=2,
        learning_rate=1e-2,
        report_to='none',
        progress=quiet,
    )
    for stage in ('easy', 'normal', 'hard', 'text_encoder', 'final'):
        assert (run/stage/'pytorch_lora_weights.safetensors').exists()

    plain = getattr(diffusers, family_in(base).pipeline).from_pretrained(
        base, **({} if family == 'sdxl' else dict(safety_checker=None))
    )
    plain.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(plain.scheduler.config)
    plain.set_progress_bar_config(disable=True)
    def draw():
        return pixels(
            plain(
                'a person',
                generator=seed(1),
                width=64,
                height=64,
                num_inference_steps=2,
            ).images[0]
        )
    # the same picture twice may differ by a grey level: how a CPU rounds hangs on where in memory the weights lie
    def differ(a, b): return np.abs(a - b).max() > 1
    before = draw()
    plain.load_lora_weights(run/'final')
    both = draw()
    assert differ(both, before)
    plain.unload_lora_weights()
    assert not differ(draw(), before)
    state = load_file(run/'final'/'pytorch_lora_weights.safetensors')
    # each part acts by itself, so none was dropped on loading
    for part in ('unet', *family_in(base).text_encoders):
        plain.load_lora_weights({k: v for k, v in state.items() if k.startswith(f'{part}.')})
        alone = draw()
        plain.unload_lora_weights()
        assert differ(alone, before) and differ(alone, both), part
    # the twin for ComfyUI and A1111, text encoders included
    assert twin_file(run/'final').name == f'ws-{run.name}.safetensors'
    plain.load_lora_weights(run/'final', weight_name=twin_file(run/'final').name)
    assert not differ(draw(), both)


def test_a_hub_id_is_read_from_the_local_cache(base, tmp_path):
    "A model that was downloaded before is found by its hub id, as it lies in the hub's cache, without a network."
    import json
    import os
    import shutil
    import subprocess
    import sys
    snapshot = tmp_path/'hub'/'models--someone--people'/'snapshots'/'abc'
    shutil.copytree(base, snapshot)
    (tmp_path/'hub'/'models--someone--people'/'refs').mkdir()
    (tmp_path/'hub'/'models--someone--people'/'refs'/'main').write_text('abc')
    code = ("from hgdpo_curate.pipelines import load_pipeline, model_hash; import json; "
            "print(json.dumps([model_hash('someone/people'), type(load_pipeline('someone/people', 'cpu')).__name__]))")
    done = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        env=os.environ | dict(HF_HUB_CACHE=str(tmp_path / 'hub'), HF_HUB_OFFLINE='1'),
    )
    from hgdpo_curate.pipelines import model_hash
    assert done.returncode == 0, done.stderr[-1500:]
    assert json.loads(done.stdout.splitlines()[-1]) == [model_hash(base), 'StableDiffusionPipeline']


def test_a_pool_image_is_what_diffusers_makes_with_the_same_seed_and_settings(base, tmp_path):
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
    ws = make_workspace(
        tmp_path / 'ws',
        base,
        photos=3,
        size='64x64',
        steps=STEPS,
        n=2,
    )
    im = ws.table('images').merge(ws.table('prompts')[['prompt_id', 'prompt']], on='prompt_id')
    plain = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    plain.scheduler = DPMSolverMultistepScheduler.from_config(plain.scheduler.config, timestep_spacing='linspace')
    for r in im[im.domain == 'generated'].itertuples():
        want = plain(
            r.prompt,
            generator=seed(r.seed),
            width=64,
            height=64,
            num_inference_steps=STEPS,
            guidance_scale=2.0,
        ).images[0]
        assert np.abs(pixels(want) - pixels(ws.open_image(r.path))).max() <= 1        # batching changes rounding only


def test_sdrecon_at_1000_is_a_plain_generation(pipe):
    from hgdpo_curate import sdrecon
    from hgdpo_curate.toy.drawings import draw_person
    photo = draw_person(1).pil().resize(SIZE)
    got = sdrecon(
        pipe,
        photo,
        'a person',
        1000,
        5,
        STEPS,
        GUIDANCE,
    )
    want = pipe(
        'a person',
        generator=seed(5),
        width=64,
        height=64,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
    ).images[0]
    assert np.abs(pixels(got) - pixels(want)).max() <= 1                             # as a CPU rounds


def test_sdrecon_starts_from_the_photo_noised_to_its_level(pipe):
    from hgdpo_curate.toy.drawings import draw_person
    from hgdpo_curate.images.recon import recon_start
    from hgdpo_curate.pipelines import encode_posterior, to_pixels
    photo = draw_person(1).pil().resize(SIZE)
    clean = encode_posterior(pipe, to_pixels([photo], SIZE))[0]
    a = pipe.scheduler.alphas_cumprod
    far = []
    for t in (10, 100, 500, 900):
        start = recon_start(
            pipe,
            [photo],
            t,
            [3],
            20,
            SIZE,
        )
        noise = torch.randn(clean.shape, generator=seed(3))
        assert start['timesteps'][0] == t - 1
        assert torch.allclose(start['latents'], a[t - 1].sqrt()*clean + (1 - a[t - 1]).sqrt()*noise, atol=1e-4)
        far.append((start['latents'] - clean).square().mean().item())
    assert far == sorted(far) and far[0] < .05*far[-1]


def test_sdrecon_at_a_small_level_stays_near_the_photo():
    "On the trained mannequin base: with random weights the latents are so small that any noise drowns the photo."
    from hgdpo_curate import sdrecon
    from hgdpo_curate.toy.drawings import draw_person
    from hgdpo_curate.pipelines import encode_posterior, load_pipeline, MANNEQUIN, to_pixels
    pipe, drawn = load_pipeline(MANNEQUIN, 'cpu'), draw_person(1)
    photo, size = drawn.pil(), drawn.pil().size
    with torch.no_grad():
        trip = pipe.vae.decode(
            encode_posterior(pipe, to_pixels([photo], size))[0] / pipe.vae.config.scaling_factor
        ).sample
    # what the autoencoder itself makes of the photo
    trip = ((trip[0].permute(1, 2, 0)/2 + .5).clamp(0, 1)*255).round().numpy().astype(int)
    far = [
        np.abs(
            pixels(
                sdrecon(
                    pipe,
                    photo,
                    drawn.prompt,
                    t,
                    5,
                    20,
                    GUIDANCE,
                )
            )
            - trip
        ).mean()
        for t in (10, 400, 1000)
    ]
    assert far[0] < 6 and far[0] < far[1] < far[2], far


def test_sdrecon_matches_diffusers_img2img_where_the_step_grids_agree(pipe):
    from diffusers import StableDiffusionImg2ImgPipeline
    from hgdpo_curate import sdrecon
    from hgdpo_curate.toy.drawings import draw_person
    from hgdpo_curate.pipelines import encode_posterior, to_pixels
    photo, steps = draw_person(1).pil().resize(SIZE), 20
    pipe.scheduler.set_timesteps(steps)
    grid = [int(t) for t in pipe.scheduler.timesteps]
    place = next(i for i, t in enumerate(grid) if t < 500)
    img2img = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    img2img.set_progress_bar_config(disable=True)
    latents = encode_posterior(pipe, to_pixels([photo], SIZE))[0]
    want = img2img(
        'a person',
        image=latents,
        strength=(steps - place) / steps,
        generator=seed(7),
        num_inference_steps=steps,
        guidance_scale=GUIDANCE,
    ).images[0]
    got = sdrecon(
        pipe,
        photo,
        'a person',
        grid[place] + 1,
        7,
        steps,
        GUIDANCE,
    )
    assert np.abs(pixels(got) - pixels(want)).max() <= 2
