"""What a training step costs, side by side with what a user would run otherwise.

    python benchmarks/train.py count          FLOPs of a step in U-Net forwards, its peak memory, full-size
                                              SD1.5 and SDXL; counted, nothing is computed
    python benchmarks/train.py speed          pairs per second of four ways of training, alternating in one process
    python benchmarks/train.py speed --full   the same on full-size SD1.5 with random weights, for a GPU

Four ways: ours; ours with fixed draws; a plain step in the manner of public scripts (VAE and text encoder in the
loop, gradient checkpointing, online reference); a plain step that already caches latents and embeddings and does not
checkpoint.
"""
import argparse
import contextlib
import statistics
import tempfile
import time
import unittest.mock
import weakref
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode

quiet = lambda total, label: (lambda n: None)  # noqa: E731
SD15 = dict(
    sample_size=64,
    in_channels=4,
    out_channels=4,
    cross_attention_dim=768,
    attention_head_dim=8,
    block_out_channels=(320, 640, 1280, 1280),
    layers_per_block=2,
    down_block_types=('CrossAttnDownBlock2D',) * 3 + ('DownBlock2D',),
    up_block_types=('UpBlock2D',) + ('CrossAttnUpBlock2D',) * 3,
)
SDXL = dict(
    sample_size=128,
    in_channels=4,
    out_channels=4,
    cross_attention_dim=2048,
    attention_head_dim=(5, 10, 20),
    block_out_channels=(320, 640, 1280),
    layers_per_block=2,
    use_linear_projection=True,
    down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D', 'CrossAttnDownBlock2D'),
    up_block_types=('CrossAttnUpBlock2D', 'CrossAttnUpBlock2D', 'UpBlock2D'),
    transformer_layers_per_block=(1, 2, 10),
    addition_embed_type='text_time',
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
)
TEXT = dict(
    vocab_size=49408,
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    max_position_embeddings=77,
)


class Filled:
    "A training cache that holds random latents and embeddings of the right shapes."
    def __init__(self, ws, pairs, shape, conditioning):
        g = torch.Generator().manual_seed(0)
        self.ws, self.kept, self.cond = (
            ws,
            {h: torch.randn((2, *shape), generator=g).abs() for w in ('winner', 'loser') for h in pairs[f'{w}_sha256']},
            {k: torch.randn(v, generator=g) for k, v in conditioning.items()},
        )

    def latent_shape(self, sha): return tuple(self.kept[sha].shape[1:])
    def conditioning(self, prompts): return {k: torch.stack([v]*len(prompts)) for k, v in self.cond.items()}
    def sample_latents(self, hashes, noise):
        return torch.stack([self.kept[h][0] for h in hashes]) + torch.stack([self.kept[h][1] for h in hashes])*noise


class Sized:
    "Stands where a step asks its workspace for the resolution."
    def __init__(self, size): self.size = size


def some_pairs(n):
    return pd.DataFrame(
        [
            dict(
                pair_id=f'p{i}',
                prompt_id=f'q{i}',
                prompt='a person',
                winner_id=f'w{i}',
                loser_id=f'l{i}',
                winner_score=1.0,
                loser_score=0.0,
                winner_sha256=f'w{i}',
                loser_sha256=f'l{i}',
            )
            for i in range(n)
        ]
    )


def pipe_of(unet, xl=False):
    "A pipeline whose U-Net is the given one; its other parts are never called."
    import diffusers
    from diffusers import DDPMScheduler
    kind = diffusers.StableDiffusionXLPipeline if xl else diffusers.StableDiffusionPipeline

    class Bare(kind):
        def __init__(self):
            self.vae_scale_factor = 8
            self.unet, self.scheduler = (
                unet,
                DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule='scaled_linear', clip_sample=False),
            )
        @property
        def device(self): return next(self.unet.parameters()).device
    Bare.__name__ = kind.__name__
    return Bare()


def stage_run(unet, size, pairs, folder, batch, xl=False, **preset):
    from hgdpo_curate.train.recipes import Preset, Stage
    from hgdpo_curate.train.trainer import StageTrainer
    cond = (
        dict(prompt_embeds=(77, unet.config.cross_attention_dim), pooled_prompt_embeds=(1280,))
        if xl
        else dict(prompt_embeds=(77, unet.config.cross_attention_dim))
    )
    stage = Stage('easy', train_batch_size=batch, lambda_stat=10_000., rank=8)
    return StageTrainer(
        pipe_of(unet, xl),
        Filled(Sized(size), pairs, (4, size[1] // 8, size[0] // 8), cond),
        stage,
        pairs,
        folder,
        Preset('p', (stage,), report_to='none', **preset),
        progress=quiet,
    )


# --- counted ----------------------------------------------------------------------------------------------------------
# -------------------------------------

def count_flops(config, size, name, xl=False):
    """FLOPs of one pass over one pair, in units of one U-Net forward of one image, on the meta device.

    With the reference online, and with what it said kept.
    """
    from diffusers import UNet2DConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    from hgdpo_curate.train.batches import step_indices
    with torch.device('meta'): unet = UNet2DConditionModel(**config)
    unet.requires_grad_(False)

    def flops(work):
        with FlopCounterMode(display=False) as counter: work()
        return counter.get_total_flops()
    inputs = dict(encoder_hidden_states=torch.empty(1, 77, config['cross_attention_dim'], device='meta'))
    if xl:
        inputs['added_cond_kwargs'] = dict(
            text_embeds=torch.empty(1, 1280, device='meta'), time_ids=torch.empty(1, 6, device='meta')
        )
    with torch.no_grad():
        one = flops(
            lambda: unet(
                torch.empty(
                    1,
                    4,
                    size[1] // 8,
                    size[0] // 8,
                    device='meta',
                ),
                torch.zeros(1, device='meta'),
                **inputs,
            )
        )
    with tempfile.TemporaryDirectory() as d:
        run = stage_run(
            unet,
            size,
            some_pairs(1),
            Path(d),
            1,
            xl,
        )
        online = flops(lambda: run.pass_loss(step_indices(0, 1)).loss.backward())/one
        run.close()
        run = stage_run(
            unet,
            size,
            some_pairs(1),
            Path(d),
            1,
            xl,
            fixed_draws=1,
        )
        run.pass_loss.read_batch.reference_cache.values.zero_()
        fixed = flops(lambda: run.pass_loss(step_indices(0, 1)).loss.backward())/one
    print(f'| {name}, {size[0]}x{size[1]} | {one/1e9:.0f} GFLOP | {online:.2f} | {fixed:.2f} |')
    return online, fixed


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages that operations have made and nobody has let go of yet.

    Meta tensors have sizes, though no memory.
    """
    def __init__(self):
        super().__init__()
        self.now, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in torch.utils._pytree.tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.device.type == 'meta': self.see(t.untyped_storage())
        return out

    def see(self, storage):
        key = storage._cdata
        if key in self.known: return
        size = storage.nbytes()
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.gone, key, size)

    def gone(self, key, size):
        self.known.discard(key)
        self.now -= size


class Flash(torch.autograd.Function):
    """Stands for a fused attention kernel.

    It keeps its inputs, its output and a number per query, never the attention matrix, which is what meta tensors would
    otherwise be charged for.
    """
    @staticmethod
    def forward(ctx, q, k, v, *a, **kw):
        out = torch.empty_like(q)
        ctx.save_for_backward(
            q,
            k,
            v,
            out,
            q.new_empty(q.shape[:-1], dtype=torch.float32),
        )
        return out

    @staticmethod
    def backward(ctx, g): return *(torch.empty_like(x) for x in ctx.saved_tensors[:3]), *[None]*5


def meta_unet(config, checkpointing):
    "A U-Net in bf16 without memory, with a LoRA."
    from diffusers import UNet2DConditionModel
    from diffusers.utils import logging

    from hgdpo_curate.adapters import add_lora
    logging.set_verbosity_error()
    unet = UNet2DConditionModel(**config).to(torch.bfloat16)
    unet.requires_grad_(False)
    # there is no autocast on meta; the float32 LoRA and its optimiser are 3 MB of 12 more
    for p in add_lora(unet, 'unet', 8): p.data = p.data.bfloat16()
    if checkpointing: unet.enable_gradient_checkpointing()
    return unet


def count_memory(config, size, name, batch, checkpointing, xl=False, way='ours'):
    """Peak memory of one pass and its backward, counted on the meta device: everything in bf16, the reference online.

    What cuDNN and cuBLAS take as workspace and fragmentation come on top.

    The reference is the U-Net with its LoRA switched off, in public scripts too. `way`: 'ours' (latents cached; VAE and
    text encoder, idle while training, not counted), 'public' (both in the loop, no statistics matching).
    """
    from diffusers import DDPMScheduler

    from hgdpo_curate.adapters import reference
    from hgdpo_curate.train.losses import denoising_error, diffusion_dpo_loss, statistics_matching_loss
    ours = way == 'ours'
    with torch.device('meta'):
        unet = meta_unet(config, checkpointing)
        beside = models(True, 'meta', torch.bfloat16)[1:] if way == 'public' else ()
        ddpm, t = DDPMScheduler(clip_sample=False), torch.zeros(2*batch, dtype=torch.long)
        inputs = dict(
            encoder_hidden_states=torch.empty(2 * batch, 77, config['cross_attention_dim'], dtype=torch.bfloat16)
        )
        if xl:
            inputs['added_cond_kwargs'] = dict(
                text_embeds=torch.empty(2 * batch, 1280, dtype=torch.bfloat16),
                time_ids=torch.empty(2 * batch, 6, dtype=torch.bfloat16),
            )
        weights = sum(p.nbytes for m in {unet, *beside} for p in m.parameters())
        fused = lambda q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, **kw: Flash.apply(
            q,
            k,
            v,
            attn_mask,
            dropout_p,
            is_causal,
            None,
            None,
        )  # noqa: E731
        with (
            LiveBytes() as live,
            unittest.mock.patch.object(torch.nn.functional, 'scaled_dot_product_attention', fused),
        ):
            x = torch.empty(
                2 * batch,
                4,
                size[1] // 8,
                size[0] // 8,
                dtype=torch.bfloat16,
            )
            if beside:
                with torch.no_grad():
                    x = (
                        beside[0]
                        .encode(
                            torch.empty(
                                2 * batch,
                                3,
                                size[1],
                                size[0],
                                dtype=torch.bfloat16,
                            )
                        )
                        .latent_dist.mean
                    )
                    inputs['encoder_hidden_states'] = beside[1](torch.zeros(2*batch, 77, dtype=torch.long))[0]
            pred = unet(x, t, **inputs).sample
            with torch.no_grad(), reference(unet): ref = unet(x, t, **inputs).sample
            (w, l), (rw, rl) = denoising_error(pred, x).chunk(2), denoising_error(ref, x).chunk(2)
            loss = diffusion_dpo_loss(
                w,
                l,
                rw,
                rl,
                2500.0,
            ).mean()
            if ours:
                loss = (
                    loss
                    + 1e4
                    * statistics_matching_loss(
                        pred[:batch],
                        ref[:batch].float().mean((2, 3), keepdim=True),
                        x[:batch],
                        t[:batch],
                        ddpm,
                    ).mean()
                )
            loss.backward()
    print(
        f'| {name}, {size[0]}x{size[1]} | {batch} | {"yes" if checkpointing else "no"} | {weights / 2**30:.1f} '
        f'GiB | {live.peak / 2**30:.1f} GiB | {(weights + live.peak) / 2**30:.1f} GiB |',
        flush=True,
    )
    return weights + live.peak


def count():
    print('\n| U-Net | one forward | a pair, reference online | a pair, fixed draws |\n|---|---|---|---|')
    for config, size, name, xl in (
        (SD15, (512, 512), 'SD1.5', False),
        (SD15, (704, 1024), 'SD1.5', False),
        (SDXL, (1024, 1024), 'SDXL', True),
    ):
        count_flops(config, size, name, xl)
    print(
        '\n| U-Net | pairs per pass | checkpointing | weights | the rest at its peak | together '
        '|\n|---|---|---|---|---|---|'
    )
    for config, size, name, batch, ck, xl in (
        (SD15, (512, 512), 'SD1.5 (`sd15-24gb`)', 8, False, False),
        (SD15, (512, 512), 'SD1.5 (`sd15-12gb`)', 2, True, False),
        (SDXL, (1024, 1024), 'SDXL (`sdxl-48gb`)', 2, True, True),
    ):
        count_memory(
            config,
            size,
            name,
            batch,
            ck,
            xl,
        )
    for size, batch in (((512, 512), 8), ((704, 1024), 4)):
        for way, ck, name in (
            ('ours', False, 'ours'),
            ('ours', True, 'ours with checkpointing'),
            ('public', True, 'plain: VAE and text encoder in the loop, checkpointing'),
            ('public', False, 'plain: VAE and text encoder in the loop'),
        ):
            count_memory(
                SD15,
                size,
                f'SD1.5, {name}',
                batch,
                ck,
                way=way,
            )


# --- measured ---------------------------------------------------------------------------------------------------------
# -------------------------------------

def models(full, device, dtype):
    "U-Net, VAE and text encoder of SD1.5, random: full size, or every width a fifth of it."
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel
    torch.manual_seed(0)
    k = 1 if full else 5
    unet = UNet2DConditionModel(
        **SD15
        | dict(
            block_out_channels=tuple(c // k for c in SD15['block_out_channels']),
            cross_attention_dim=TEXT['hidden_size'] // k // 8 * 8,
            norm_num_groups=32 if full else 16,
        )
    )
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512) if full else (32, 48, 96, 96),
        down_block_types=('DownEncoderBlock2D',) * 4,
        up_block_types=('UpDecoderBlock2D',) * 4,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=32 if full else 16,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            **TEXT
            | (
                {}
                if full
                else dict(
                    hidden_size=TEXT['hidden_size'] // k // 8 * 8,
                    intermediate_size=600,
                    num_attention_heads=8,
                    vocab_size=2000,
                )
            )
        )
    )
    for m in (unet, vae, text): m.requires_grad_(False).eval().to(device, dtype)
    unet.to(memory_format=torch.channels_last)
    return unet, vae, text


def plain_way(unet, vae, text, pairs, size, batch, cached, checkpointing, dtype):
    "A step as public scripts make it: a function that trains one batch. The reference has its LoRA switched off."
    from diffusers import DDPMScheduler

    from hgdpo_curate.adapters import add_lora, reference
    from hgdpo_curate.train.losses import denoising_error, diffusion_dpo_loss
    device, rng = next(unet.parameters()).device, torch.Generator().manual_seed(1)
    params = add_lora(unet, 'unet', 8)
    optimizer = torch.optim.AdamW(params, lr=1e-5)
    ddpm = DDPMScheduler(beta_start=.00085, beta_end=.012, beta_schedule='scaled_linear')
    pixels = (
        torch.rand(
            2 * batch,
            3,
            size[1],
            size[0],
            generator=rng,
        )
        .mul(2)
        .sub(1)
    )
    ids = torch.randint(0, text.config.vocab_size, (batch, 77), generator=rng)
    mixed = torch.autocast(device.type, dtype) if dtype != torch.float32 else contextlib.nullcontext()
    encode = lambda: vae.encode(pixels.to(device, dtype)).latent_dist.sample()*vae.config.scaling_factor  # noqa: E731
    embed = lambda: text(ids.to(device))[0].repeat(2, 1, 1)  # noqa: E731
    with torch.no_grad(): latents, states = encode(), embed()
    (unet.enable_gradient_checkpointing if checkpointing else unet.disable_gradient_checkpointing)()

    def step():
        with torch.no_grad(): x, c = (latents, states) if cached else (encode(), embed())
        noise = torch.randn(batch, *x.shape[1:], device=device, dtype=x.dtype).repeat(2, 1, 1, 1)
        t = torch.randint(0, 1000, (batch,), device=device).repeat(2)
        noisy = ddpm.add_noise(x, noise, t)
        with mixed:
            err = denoising_error(unet(noisy, t, c).sample, noise)
            with torch.no_grad(), reference(unet): ref = denoising_error(unet(noisy, t, c).sample, noise)
        (w, l), (rw, rl) = err.chunk(2), ref.chunk(2)
        diffusion_dpo_loss(
            w,
            l,
            rw,
            rl,
            2500.0,
        ).mean().backward()
        torch.nn.utils.clip_grad_norm_(params, 1.)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return step


def speed(full, batch, rounds, size):
    import copy

    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    dtype = torch.bfloat16 if device == 'cuda' else torch.float32
    unet, vae, text = models(full, device, dtype)
    pairs = some_pairs(batch*2)
    with tempfile.TemporaryDirectory() as d:
        ours = stage_run(
            copy.deepcopy(unet),
            size,
            pairs,
            Path(d) / 'a',
            batch,
        )
        without = stage_run(
            copy.deepcopy(unet),
            size,
            pairs,
            Path(d) / 'b',
            batch,
        )
        without.stage = __import__('dataclasses').replace(without.stage, lambda_stat=0.)
        fixed = stage_run(
            copy.deepcopy(unet),
            size,
            pairs,
            Path(d) / 'c',
            batch,
            fixed_draws=1,
        )
        ways = {
            'ours': lambda: ours.train_step(),
            'ours, fixed draws': lambda: fixed.train_step(),
            'ours without statistics matching': lambda: without.train_step(),
            'plain: VAE and text encoder in the loop, checkpointing': plain_way(
                copy.deepcopy(unet),
                vae,
                text,
                pairs,
                size,
                batch,
                False,
                True,
                dtype,
            ),
            'plain: cached, no checkpointing': plain_way(
                copy.deepcopy(unet),
                vae,
                text,
                pairs,
                size,
                batch,
                True,
                False,
                dtype,
            ),
        }
        took, peak = {k: [] for k in ways}, {}
        # two rounds to warm up; fixed draws then know every pair
        for r in range(rounds + 2):
            for name, step in ways.items():
                if device == 'cuda':
                    torch.cuda.synchronize()
                    torch.cuda.reset_peak_memory_stats()
                began = time.perf_counter()
                step()
                if device == 'cuda':
                    torch.cuda.synchronize()
                    peak[name] = torch.cuda.max_memory_allocated()/2**30
                if r >= 2: took[name].append(time.perf_counter() - began)
        waited = [f.data_seconds/f.seconds for f in ours.logger.rows[2:]]
    report(
        took,
        peak,
        waited,
        batch,
        full,
        size,
        device,
    )


def report(took, peak, waited, batch, full, size, device):
    mid = {k: statistics.median(v) for k, v in took.items()}
    ours = mid['ours']
    print(
        f'\n{date.today()}, '
        f'{torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads"}, '
        f'{"full-size" if full else "reduced"} SD1.5, {size[0]}x{size[1]}, {batch} pairs a step, '
        f'{len(next(iter(took.values())))} steps each, alternating\n'
    )
    print(
        '| way | pairs per second | ours is faster by | fixed draws are faster by | peak memory '
        '|\n|---|---|---|---|---|'
    )
    for k, m in mid.items():
        ratios = sorted(np.array(took[k])/np.array(took['ours']))
        print(
            f'| {k} | {batch / m:.3f} | {m / ours:.2f} times [{ratios[len(ratios) // 10]:.2f}, '
            f'{ratios[-1 - len(ratios) // 10]:.2f}] | {m / mid["ours, fixed draws"]:.2f} times | '
            f'{f"{peak[k]:.1f} GiB" if k in peak else "not measured"} |'
        )
    stat = statistics.median(np.array(took['ours'])/np.array(took['ours without statistics matching'])) - 1
    print(
        f'\nStatistics matching: {stat:+.1%} of a step (median of paired steps). Waiting for data: '
        f'{statistics.median(waited):.2%} of a step.'
    )


def caching(n=64):
    "How much of the filling of a cache is the VAE's own work."
    from hgdpo_curate.toy.drawings import draw_person
    from hgdpo_curate import pipelines as m
    from hgdpo_curate.pipelines import load_pipeline
    from hgdpo_curate.toy.layouts import random_sd15
    from hgdpo_curate.train.cache import TrainingCache
    from hgdpo_curate.workspace import create_workspace
    with tempfile.TemporaryDirectory() as d:
        ws = create_workspace(Path(d)/'ws', resolution='512')
        pipe = load_pipeline(random_sd15(Path(d)/'sd'))
        _, pipe.vae, _ = models(False, pipe.device, torch.float32)
        rows = [ws.save_image(draw_person(i).pil().resize((512, 512)), 'real', f'{i:016x}') for i in range(n)]
        real, inside = m.encode_posterior, []

        def timed(*a):
            began = time.perf_counter()
            out = real(*a)
            inside.append(time.perf_counter() - began)
            return out
        m.encode_posterior, began = timed, time.perf_counter()
        TrainingCache(ws, 'x').fill(
            pipe,
            {r['sha256']: r['path'] for r in rows},
            ['a person'],
            batch=8,
            progress=quiet,
        )
        took = time.perf_counter() - began
        m.encode_posterior = real
    print(
        f'\nCaching {n} images of 512x512 (reduced VAE): {took:.1f} s, of which the VAE {sum(inside):.1f} s '
        f'({sum(inside) / took:.0%}).'
    )


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=['count', 'speed', 'caching'])
    p.add_argument('--full', action='store_true', help='full-size SD1.5')
    p.add_argument('--batch', type=int, default=2, help='pairs per step')
    p.add_argument('--rounds', type=int, default=10, help='steps of each way')
    p.add_argument('--resolution', default='256', help='512 or 704x1024')
    a = p.parse_args()
    from hgdpo_curate.workspace import parse_resolution
    if a.what == 'count': count()
    elif a.what == 'caching': caching()
    else: speed(a.full, a.batch, a.rounds, parse_resolution(a.resolution))
