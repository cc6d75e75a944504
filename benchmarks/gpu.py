"""What this toolkit does on a GPU, in eight minutes: speed, memory, precision, beside what a user would run otherwise.

    python benchmarks/gpu.py                        from a checkout, without a network; random full-size weights
    python benchmarks/gpu.py --only training,pool   some parts
    python benchmarks/gpu.py --dry-run              every part at small width on the CPU, to see that all of it runs

Needs torch, diffusers, peft, transformers, pandas and safetensors, nothing else. A part that does not fit or fails is
named with its reason, and the others go on. Tables are printed as Markdown; --output keeps all figures as JSON.
"""
import argparse
import contextlib
import gc
import json
import math
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT/'benchmarks')]
from train import SD15, SDXL, TEXT, quiet, some_pairs, stage_run  # noqa: E402

# bf16 with dense matrices, FLOP/s, as their makers state it
PEAKS = {
    'H100 PCIe': 756e12,
    'H100': 989e12,
    'H200': 989e12,
    'A100': 312e12,
    'L40S': 362e12,
    'L4': 121e12,
    'RTX 4090': 165e12,
}
# what a dry run makes smaller
SMALL = dict(
    sd15=dict(block_out_channels=(16, 32, 32, 32), cross_attention_dim=64, norm_num_groups=8, layers_per_block=1),
    sdxl=dict(
        block_out_channels=(16, 32, 32),
        cross_attention_dim=64,
        norm_num_groups=8,
        layers_per_block=1,
        attention_head_dim=(2, 4, 4),
        transformer_layers_per_block=(1, 1, 1),
        projection_class_embeddings_input_dim=1280 + 6*256,
    ),
    text=dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4),
    vae=dict(block_out_channels=(16, 16, 16, 16), norm_num_groups=8, layers_per_block=1),
)


@dataclass
class Machine:
    "What the parts run on, and how long they may take."
    device: str
    dry: bool
    deadline: float
    rows: list = field(default_factory=list)    # of every part: dicts, for --output

    @property
    def name(self): return torch.cuda.get_device_name() if self.device == 'cuda' else f'CPU ({platform.machine()})'

    @property
    def peak(self): return next((p for n, p in PEAKS.items() if n in self.name), None)

    @property
    def half(self): return torch.bfloat16

    def sync(self):
        if self.device == 'cuda': torch.cuda.synchronize()

    def forget(self): # what earlier rows left
        gc.collect()
        if self.device == 'cuda':
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def memory(self): # GiB at the peak, allocated and reserved; None on a CPU
        if self.device != 'cuda': return None, None
        return torch.cuda.max_memory_allocated()/2**30, torch.cuda.max_memory_reserved()/2**30


def table(m, part, title, columns):
    "Print rows as they come; the function returned prints one."
    print(f'\n**{title}**\n\n| {" | ".join(columns)} |\n|{"---|"*len(columns)}', flush=True)

    def row(*cells, **figures):
        print(f'| {" | ".join(cells)} |', flush=True)
        m.rows.append(dict(part=part, name=cells[0]) | figures)
    return row


def attempt(m, row, name, columns, work):
    "One row; what goes wrong is its text."
    m.forget()
    if time.monotonic() > m.deadline: return row(name, 'not run: the time is up', *['']*(columns - 2))
    try: work()
    except Exception as e:      # out of memory, a missing kernel, a compiler that fails: the other rows still count
        said = str(e).splitlines()[0][:100] if str(e) else ''
        row(name, f'failed: {type(e).__name__}: {said}', *['']*(columns - 2), failed=True)


# --- models, random and made on the card ------------------------------------------------------------------------------

def make_unet(m, kind, dtype=None):
    from diffusers import UNet2DConditionModel
    config = (SDXL if kind == 'sdxl' else SD15) | (SMALL[kind] if m.dry else {})
    torch.manual_seed(0)
    with torch.device(m.device): unet = UNet2DConditionModel(**config)
    return unet.to(dtype or m.half).requires_grad_(False).eval()


def make_vae(m):
    from diffusers import AutoencoderKL
    config = dict(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=('DownEncoderBlock2D',)*4,
        up_block_types=('UpDecoderBlock2D',)*4,
        layers_per_block=2,
        latent_channels=4,
    )
    with torch.device(m.device): vae = AutoencoderKL(**config | (SMALL['vae'] if m.dry else {}))
    return vae.to(m.half).requires_grad_(False).eval()


def make_text(m):
    from transformers import CLIPTextConfig, CLIPTextModel
    with torch.device(m.device): text = CLIPTextModel(CLIPTextConfig(**TEXT | (SMALL['text'] if m.dry else {})))
    return text.to(m.half).requires_grad_(False).eval()


def make_pipe(m):
    "A whole SD1.5 pipeline."
    from diffusers import PNDMScheduler

    from hgdpo_curate.pipelines import set_sampler
    from hgdpo_curate.toy.networks import NOISE_SCHEDULE, caption_tokenizer, stable_diffusion
    tokenizer = caption_tokenizer(['a photo of a person'])
    tokenizer.model_max_length = 77
    scheduler = PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1, **NOISE_SCHEDULE)
    parts = dict(vae=make_vae(m), text_encoder=make_text(m), unet=make_unet(m, 'sd15'))
    pipe = stable_diffusion(tokenizer=tokenizer, scheduler=scheduler, **parts)
    set_sampler(pipe, 'dpm')
    pipe.set_progress_bar_config(disable=True)
    return pipe


# --- training ---------------------------------------------------------------------------------------------------------

def public_step(m, unet, vae, text, size, batch, checkpointing):
    """A step as the DPO script of diffusers' research projects makes it, written out.

    VAE and text encoder run in the loop; the reference is the U-Net with its LoRA switched off.
    """
    from diffusers import DDPMScheduler
    from peft import LoraConfig
    places = ['to_k', 'to_q', 'to_v', 'to_out.0']
    unet.add_adapter(LoraConfig(r=8, lora_alpha=8, init_lora_weights='gaussian', target_modules=places))
    params = [p for p in unet.parameters() if p.requires_grad]
    for p in params: p.data = p.data.float()
    unet.train()
    if checkpointing: unet.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(params, lr=1e-5)
    ddpm = DDPMScheduler(beta_start=.00085, beta_end=.012, beta_schedule='scaled_linear')
    pixels = torch.rand(2*batch, 3, size[1], size[0], device=m.device, dtype=m.half)*2 - 1
    ids = torch.randint(0, text.config.vocab_size, (batch, 77), device=m.device)

    def errors(noisy, t, states, noise):
        with torch.autocast(m.device, m.half): pred = unet(noisy, t, states).sample
        return (pred.float() - noise.float()).pow(2).mean((1, 2, 3)).chunk(2)

    def step():
        with torch.no_grad():
            latents = torch.cat([vae.encode(x).latent_dist.sample() for x in pixels.split(8)])*vae.config.scaling_factor
            states = text(ids)[0].repeat(2, 1, 1)
        noise = torch.randn_like(latents)[:batch].repeat(2, 1, 1, 1)
        t = torch.randint(0, 1000, (batch,), device=m.device).repeat(2)
        noisy = ddpm.add_noise(latents, noise, t)
        winner, loser = errors(noisy, t, states, noise)
        unet.disable_adapters()
        with torch.no_grad(): ref_winner, ref_loser = errors(noisy, t, states, noise)
        unet.enable_adapters()
        loss = -torch.nn.functional.logsigmoid(2500*((ref_winner - ref_loser) - (winner - loser))).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return step


def seconds_of(m, step, seconds, warm=3):
    "Median seconds of a step, how many were timed."
    for _ in range(1 if m.dry else warm): step()
    m.sync()
    took, end = [], time.monotonic() + seconds
    while len(took) < 2 or time.monotonic() < min(end, m.deadline):
        began = time.perf_counter()
        step()
        m.sync()
        took.append(time.perf_counter() - began)
        if m.dry and len(took) == 2: break
    return statistics.median(took), len(took)


def flops_of(step):
    from torch.utils.flop_counter import FlopCounterMode
    with FlopCounterMode(display=False) as counter: step()
    return counter.get_total_flops()


COLUMNS = ['way', 'pairs per second', 'against the first', 'TFLOP a pair', 'share of bf16 peak', 'peak memory']


def training(m, kind, size, batch, ways, seconds):
    row, spent, base = table(m, f'training {kind}', f'Training, {kind}, {size[0]} x {size[1]}, {batch} pairs a step',
                             COLUMNS), {}, {}

    def measure(name, step, flops):
        each, n = seconds_of(m, step, seconds)
        base.setdefault('first', each)
        used, (peak, _) = (spent.setdefault(flops, None) or flops_of(step)), m.memory()
        spent[flops] = used
        share = used/each/m.peak if m.peak else None
        row(name, f'{batch/each:.2f}', f'{base["first"]/each:.2f} times', f'{used/batch/1e12:.2f}',
            f'{share:.0%}' if share else '', f'{peak:.1f} GiB' if peak else '', pairs_per_second=batch/each, steps=n,
            tflop_a_pair=used/batch/1e12, share_of_peak=share, peak_gib=peak)

    def public(name, checkpointing):
        parts = make_unet(m, kind), make_vae(m), make_text(m)
        measure(name, public_step(m, *parts, size, batch, checkpointing), name)

    def ours(name, flops, **preset):
        with tempfile.TemporaryDirectory() as d:
            run = stage_run(make_unet(m, kind), size, some_pairs(2*batch), Path(d), batch, kind == 'sdxl', **preset)
            measure(name, run.train_step, flops)
            run.model.close()
    for name, flops, how in ways:
        if flops is None: attempt(m, row, name, len(COLUMNS), lambda name=name, how=how: public(name, **how))
        else:
            attempt(m, row, name, len(COLUMNS), lambda name=name, flops=flops, how=how: ours(name, flops, **how))


def training_sd15(m):
    ways = [
        ('public step', None, dict(checkpointing=False)),
        ('public step, checkpointing', None, dict(checkpointing=True)),
        ('ours', 'ours', {}),
        ('ours, checkpointing', 'checkpointing', dict(gradient_checkpointing=True)),
        ('ours, fixed draws', 'fixed', dict(fixed_draws=1)),
        # operations inside a compiled block cannot be counted: those of the same step without it are taken
        ('ours, compiled', 'ours', dict(compile=True)),
        ('ours, fixed draws, compiled', 'fixed', dict(fixed_draws=1, compile=True)),
    ]
    if m.dry: ways = ways[:5]      # a compiler takes a minute on a CPU
    training(m, 'sd15', (64, 64) if m.dry else (512, 512), 1 if m.dry else 8, ways, 8)


def training_sdxl(m):
    ways = [
        ('ours, checkpointing', 'checkpointing', dict(gradient_checkpointing=True)),
        ('ours, checkpointing, fixed draws', 'fixed', dict(gradient_checkpointing=True, fixed_draws=1)),
    ]
    training(m, 'sdxl', (64, 64) if m.dry else (1024, 1024), 1 if m.dry else 2, ways, 8)


# --- memory of the presets --------------------------------------------------------------------------------------------

def memory(m):
    row = table(m, 'memory', 'Peak memory of the presets, one step', ['preset', 'optimizer', 'allocated', 'reserved'])
    from hgdpo_curate.train.presets import load_preset
    from hgdpo_curate.workspace import parse_resolution

    def measure(name):
        preset = load_preset(name)
        optimizer = preset.optimizer
        try: import bitsandbytes  # noqa: F401 the optimizer needs it
        except ImportError: optimizer = 'adamw'
        kind, stage = 'sdxl' if name.startswith('sdxl') else 'sd15', preset.stages[0]
        size, batch = ((64, 64), 1) if m.dry else (parse_resolution(preset.pool.resolution), stage.train_batch_size)
        passes = 1 if m.dry else preset.gradient_accumulation_steps
        with tempfile.TemporaryDirectory() as d:
            run = stage_run(make_unet(m, kind), size, some_pairs(batch*passes), Path(d), batch, kind == 'sdxl',
                            gradient_checkpointing=preset.gradient_checkpointing, optimizer=optimizer,
                            gradient_accumulation_steps=passes)
            for _ in range(2): run.train_step()
            m.sync()
            peak, reserved = m.memory()
            run.model.close()
        cells = [f'{x:.1f} GiB' if x else 'not measured on a CPU' for x in (peak, reserved)]
        row(name, optimizer, *cells, allocated_gib=peak, reserved_gib=reserved)
    for name in ('sd15-24gb', 'sd15-12gb', 'sdxl-48gb'): attempt(m, row, name, 4, lambda name=name: measure(name))


# --- precision --------------------------------------------------------------------------------------------------------

def precision(m):
    row = table(m, 'precision', 'The same pairs and weights in half precision',
                ['dtype', 'loss', 'off float32 by', 'largest difference of a pair'])
    from hgdpo_curate.train.batches import step_indices
    size, batch, exact = ((64, 64), 2, {}) if m.dry else ((512, 512), 4, {})

    def measure(name, dtype):
        with tempfile.TemporaryDirectory() as d:
            run = stage_run(make_unet(m, 'sd15', dtype), size, some_pairs(batch), Path(d), batch)
            g = torch.Generator().manual_seed(3)
            # at its start a LoRA does nothing, and every precision would say log 2
            for p in run.model.params: p.data.copy_(torch.randn(p.shape, generator=g)*.02)
            with torch.no_grad(): got = run.pass_loss(step_indices(0, batch))
            losses = got.pair_losses.float().cpu().numpy()
            run.model.close()
        exact.setdefault('losses', losses)
        off, worst = losses.mean()/exact['losses'].mean() - 1, np.abs(losses - exact['losses']).max()
        row(name, f'{losses.mean():.5f}', f'{off:+.2%}', f'{worst:.2g}', loss=float(losses.mean()), off=float(off))
    for name in ('float32', 'bfloat16', 'float16'):
        attempt(m, row, name, 4, lambda name=name: measure(name, getattr(torch, name)))


def loss_scaling(m):
    row = table(m, 'loss scaling', 'Twenty steps in fp16 with its loss scaler',
                ['steps', 'overflowed', 'scale at the end', 'losses'])
    size = (64, 64) if m.dry else (512, 512)

    def measure():
        with tempfile.TemporaryDirectory() as d:
            run = stage_run(make_unet(m, 'sd15', torch.float16), size, some_pairs(8), Path(d), 1 if m.dry else 4)
            skipped, steps = 0, 3 if m.dry else 20
            for _ in range(steps):
                run.train_step()
                skipped += bool(run.skipped)
            losses = [r.loss for r in run.logger.rows]
            scale = run.optimizer.scaler.get_scale()
            run.model.close()
        finite = all(map(math.isfinite, losses))
        words = f'{losses[0]:.4f} to {losses[-1]:.4f}' + ('' if finite else ', not all finite')
        row(str(steps), str(skipped), f'{scale:g}', words, skipped=skipped, scale=scale, finite=finite)
    attempt(m, row, '20', 4, measure)


# --- the pool ---------------------------------------------------------------------------------------------------------

def files_in(folder, size):
    "Stands where a loop asks for a workspace: real files, no tables."
    from hgdpo_curate.parts import Removed
    from hgdpo_curate.workspace import ImageFiles

    class Files(ImageFiles):
        config = dict(buckets=False)
        def __init__(self): self.root, self.size, self.rows = Path(folder), size, []
        def parts(self, name): return []
        def check_there(self): pass
        def removed(self): return Removed(self.root, pd.DataFrame(dict(subject_hash=[], belonging=[])))
        def writing(self): return contextlib.nullcontext(self.removed())
        def append(self, name, rows):
            self.rows += rows
            return len(rows)
    return Files()


class InUnet:
    "Seconds spent in the U-Net's forward passes."
    def __init__(self, m, unet):
        self.m, self.spans = m, []
        self.hooks = [unet.register_forward_pre_hook(self.enter), unet.register_forward_hook(self.leave)]

    def now(self):
        if self.m.device != 'cuda': return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def enter(self, *a): self.spans.append([self.now()])
    def leave(self, *a): self.spans[-1].append(self.now())

    def seconds(self):
        self.m.sync()
        for h in self.hooks: h.remove()
        if self.m.device == 'cuda': return sum(a.elapsed_time(b) for a, b in self.spans)/1000
        return sum(b - a for a, b in self.spans)


def pool(m):
    steps, batch, n = (2, 2, 4) if m.dry else (20, 16, 48)
    size = (64, 64) if m.dry else (512, 512)
    columns = ['way', 'images per second', 'against one at a time', 'time in the U-Net']
    row = table(m, 'pool', f'Generating a pool, {size[0]} x {size[1]}, {steps} steps, guidance 7.5', columns)
    pipe, first = make_pipe(m), {}

    def measure(name, count, work):
        work(min(count, batch))                                      # the first call chooses kernels
        m.sync()
        inside, began = InUnet(m, pipe.unet), time.perf_counter()
        work(count)
        share, took = inside.seconds(), time.perf_counter() - began
        rate = count/took
        first.setdefault('rate', rate)
        row(name, f'{rate:.2f}', f'{rate/first["rate"]:.2f} times', f'{share/took:.0%}', images_per_second=rate,
            unet_share=share/took)
    settings = dict(num_inference_steps=steps, guidance_scale=7.5, width=size[0], height=size[1])

    def one_at_a_time(count):
        with tempfile.TemporaryDirectory() as d:
            for i in range(count): pipe('a photo of a person', **settings).images[0].save(Path(d)/f'{i}.png')

    def a_batch_at_a_time(count):
        with tempfile.TemporaryDirectory() as d:
            for i in range(0, count, batch):
                images = pipe(['a photo of a person']*min(batch, count - i), **settings).images
                for k, image in enumerate(images): image.save(Path(d)/f'{i + k}.png')

    def ours(count):
        from hgdpo_curate.images.jobs import image_job, run_jobs
        with tempfile.TemporaryDirectory() as d:
            jobs = [image_job('p', 'a photo of a person', k, 'random', size, 'dpm', steps, 7.5) for k in range(count)]
            run_jobs(files_in(d, size), pipe, jobs, 'generated', batch, progress=quiet)
    ways = [('plain loop, one image a call', max(2, n//8), one_at_a_time),
            (f'plain loop, {batch} images a call', n, a_batch_at_a_time), ('ours', n, ours)]
    for name, count, work in ways: attempt(m, row, name, 4, lambda a=(name, count, work): measure(*a))
    if m.dry: return
    pipe.unet.compile_repeated_blocks()
    attempt(m, row, 'ours, compiled', 4, lambda: measure('ours, compiled', n, ours))


# --- caching ----------------------------------------------------------------------------------------------------------

def caching(m):
    row = table(m, 'caching', 'Filling the training cache', ['images', 'images per second', 'of which the VAE'])
    from PIL import Image

    from hgdpo_curate import pipelines
    from hgdpo_curate.train.cache import TrainingCache
    size, n = ((64, 64), 4) if m.dry else ((512, 512), 96)

    def measure():
        pipe, inside, encode = make_pipe(m), [], pipelines.encode_posterior

        def timed(*a):
            m.sync()
            began = time.perf_counter()
            out = encode(*a)
            m.sync()
            inside.append(time.perf_counter() - began)
            return out
        with tempfile.TemporaryDirectory() as d:
            files, rng = files_in(d, size), np.random.default_rng(0)
            noise = [Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), np.uint8)) for _ in range(n)]
            rows = [files.save_image(im, 'generated', f'{i:016x}') for i, im in enumerate(noise)]
            cache = TrainingCache(files, 'random', 'bf16')
            pipelines.encode_posterior, began = timed, time.perf_counter()
            try: cache.fill(pipe, {r['sha256']: r['path'] for r in rows}, ['a person'], batch=16, progress=quiet)
            finally: pipelines.encode_posterior = encode
            took = time.perf_counter() - began
        row(str(n), f'{n/took:.1f}', f'{sum(inside)/took:.0%}', images_per_second=n/took, vae_share=sum(inside)/took)
    attempt(m, row, str(n), 3, measure)


PARTS = dict(
    training=training_sd15,
    pool=pool,
    memory=memory,
    precision=precision,
    scaling=loss_scaling,
    caching=caching,
    sdxl=training_sdxl,
)


def matmul_peak(m): # FLOP/s of one large product in bf16: what the card reaches at best
    n = 256 if m.dry else 8192
    a = torch.randn(n, n, device=m.device, dtype=m.half)
    each, _ = seconds_of(replace(m, rows=[]), lambda: a @ a, 1)
    return 2*n**3/each


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--dry-run', action='store_true', help='small models on the CPU; its figures mean nothing')
    p.add_argument('--only', default=','.join(PARTS), help=f'of {", ".join(PARTS)}')
    p.add_argument('--minutes', type=float, default=8, help='after which no further row is begun')
    p.add_argument('--output', help='JSON file for all figures')
    a = p.parse_args()
    chosen = a.only.split(',')
    if not set(chosen) <= set(PARTS): raise SystemExit(f'--only takes some of {", ".join(PARTS)}.')
    if not a.dry_run and not torch.cuda.is_available():
        raise SystemExit('There is no CUDA device here; --dry-run shows on the CPU that every part runs.')
    m = Machine('cpu' if a.dry_run else 'cuda', a.dry_run, time.monotonic() + 60*a.minutes)
    import diffusers

    from hgdpo_curate.pipelines import quiet_libraries
    quiet_libraries()
    versions = f'torch {torch.__version__}, diffusers {diffusers.__version__}, Python {platform.python_version()}'
    reached = matmul_peak(m)
    stated = f'; {m.peak/1e12:.0f} TFLOP/s in bf16 by its maker' if m.peak else ''
    print(f'{m.name}, {versions}{stated}; {reached/1e12:.3g} TFLOP/s reached by one large matrix product')
    began = time.monotonic()
    for name in chosen:
        started = time.monotonic()
        try: PARTS[name](m)
        except Exception as e:      # a part's own models may not fit
            print(f'\n{name} failed: {type(e).__name__}: {e}', flush=True)
            m.rows.append(dict(part=name, name=name, failed=True))
        m.rows.append(dict(part=name, name='seconds', seconds=time.monotonic() - started))
        m.forget()
    print(f'\n{(time.monotonic() - began)/60:.1f} minutes.')
    if a.output:
        about = dict(device=m.name, versions=versions, matmul_flops=reached, dry_run=a.dry_run, rows=m.rows)
        Path(a.output).write_text(json.dumps(about, indent=1))
    if a.dry_run and any(r.get('failed') for r in m.rows): raise SystemExit(1)


if __name__ == '__main__': main()
