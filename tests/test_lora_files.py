"""The two files of a LoRA by the rules of the tools that read them, restated here: no key of them may be left over.

The layers are those of the real models, without their weights.
"""
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

BLOCKS = dict(
    sd1=dict(
        down=[1, 1, 1, 0],
        middle=1,
        up=[0, 1, 1, 1],
        text=12,
    ),
    sd2=dict(
        down=[1, 1, 1, 0],
        middle=1,
        up=[0, 1, 1, 1],
        text=23,
    ),
    sdxl=dict(
        down=[0, 2, 10],
        middle=10,
        up=[10, 2, 0],
        text=12,
        text_2=32,
    ),
)
PARTS = dict(sd1=('text_encoder',), sd2=('text_encoder',), sdxl=('text_encoder', 'text_encoder_2'))
PROJECTIONS = ('q_proj', 'k_proj', 'v_proj', 'out_proj')
ATTENTION = [f'{a}.{p}' for a in ('attn1', 'attn2') for p in ('to_q', 'to_k', 'to_v', 'to_out.0')]


def unet(kind): # the real U-Net, whose weights take no memory
    from diffusers import UNet2DConditionModel
    shared = dict(sample_size=64, cross_attention_dim=dict(sd1=768, sd2=1024, sdxl=2048)[kind])
    with torch.device('meta'):
        if kind != 'sdxl': return UNet2DConditionModel(**shared, use_linear_projection=kind == 'sd2')
        return UNet2DConditionModel(
            **shared,
            block_out_channels=(320, 640, 1280),
            down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D', 'CrossAttnDownBlock2D'),
            up_block_types=('CrossAttnUpBlock2D', 'CrossAttnUpBlock2D', 'UpBlock2D'),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            use_linear_projection=True,
        )


def states(kind): # adapter states of rank 1, by the names of the real layers
    from hgdpo_curate.families import SDXL
    targets = tuple('.' + t for t in SDXL.lora_targets['unet'])
    layers = dict(unet=[n for n, _ in unet(kind).named_modules() if n.endswith(targets)])
    for part, count in zip(PARTS[kind], (BLOCKS[kind]['text'], BLOCKS[kind].get('text_2'))):
        above = 'text_model.' if part == 'text_encoder_2' else ''         # as transformers' two classes have it
        layers[part] = [f'{above}encoder.layers.{i}.self_attn.{p}' for i in range(count) for p in PROJECTIONS]
    return {
        part: {f'{n}.lora_{m}.weight': torch.full((1, 1), i + .5*(m == 'B')) for i, n in enumerate(names) for m in 'AB'}
        for part, names in layers.items()
    }


def described(kind): # a base's words for other tools, from a small one of its architecture
    from hgdpo_curate.families import family_of
    from hgdpo_curate.pipelines import load_pipeline
    from hgdpo_curate.toy import layouts
    def of(tmp_path):
        make = dict(sd1=layouts.random_sd15, sd2=layouts.random_sd2, sdxl=layouts.random_sdxl)[kind]
        pipe = load_pipeline(make(tmp_path/'base'), 'cpu')
        return family_of(pipe).describe(pipe)
    return of


@pytest.fixture(params=['sd1', 'sd2', 'sdxl'])
def lora(request, tmp_path):
    "A kind of base, and the folder of a LoRA for it."
    from hgdpo_curate.adapters import save_lora
    folder = tmp_path/'people'/'runs'/'paper'/'final'
    save_lora(folder, **states(request.param), metadata=described(request.param)(tmp_path))
    return request.param, folder


def left_over(keys, known, endings):
    "Keys of which the layer is not known or the ending is not."
    pairs = [next(((k[:-len(e)], e) for e in endings if k.endswith(e)), (k, None)) for k in keys]
    return [k for k, (layer, end) in zip(keys, pairs) if end is None or layer not in known]


def transformers_of(kind): # (diffusers' name, ldm's name) of every transformer block
    b = BLOCKS[kind]
    blocks = len(b['down'])
    for x, depth in enumerate(b['down']):
        for i in range(2):
            for t in range(depth):
                yield f'down_blocks.{x}.attentions.{i}', f'input_blocks.{1 + 3*x + i}.1', t
    for t in range(b['middle']): yield 'mid_block.attentions.0', 'middle_block.1', t
    for x in range(blocks):
        for i in range(3):
            for t in range(b['up'][x]): yield f'up_blocks.{x}.attentions.{i}', f'output_blocks.{3*x + i}.1', t


# ComfyUI, comfy/lora.py: model_lora_keys_unet, model_lora_keys_clip, and the endings of LoRAAdapter.load
def comfy_keys(kind):
    keys = set()
    for diffusers, ldm, t in transformers_of(kind):
        for layer in ATTENTION:
            keys.add('lora_unet_' + f'{ldm}.transformer_blocks.{t}.{layer}'.replace('.', '_'))
            keys.add('diffusion_model.' + f'{ldm}.transformer_blocks.{t}.{layer}')
            name = f'{diffusers}.transformer_blocks.{t}.{layer}'
            keys.add('lora_unet_' + name.replace('.', '_'))
            for prefix in ('', 'unet.'):
                old = prefix + name.replace('.to_', '.processor.to_')
                keys.add(old[:-2] if old.endswith('.to_out.0') else old)
    encoders = [(0, ('lora_te_', 'lora_te1_'), 'text_encoder'), (1, ('lora_te2_',), 'text_encoder_2')]
    for number, prefixes, diffusers in encoders[:len(PARTS[kind])]:
        for i in range(32 if number else 24):
            for p in PROJECTIONS:
                for prefix in prefixes: keys.add(f'{prefix}text_model_encoder_layers_{i}_self_attn_{p}')
                keys.add(f'{diffusers}.text_model.encoder.layers.{i}.self_attn.{p}')
    return keys


COMFY_ENDINGS = [
    *(f'{end}{m}.weight' for m in ('up', 'down') for end in ('.lora_', '_lora.', '.lora.', '.lora_linear_layer.')),
    '.lora_A.weight', '.lora_B.weight', '.alpha', '.dora_scale',
]


def test_comfyui_knows_every_key_of_both_files(lora):
    from hgdpo_curate.adapters import LORA_FILE, twin_file
    kind, folder = lora
    known = comfy_keys(kind)
    for file in (folder/LORA_FILE, twin_file(folder)):
        keys = [*load_file(file)]
        assert left_over(keys, known, COMFY_ENDINGS) == [], file.name
    counts = dict(sd1=128 + 48, sd2=128 + 92, sdxl=560 + 176)
    assert len(load_file(folder/LORA_FILE)) == 2*counts[kind] and len(keys) == 3*counts[kind]


def test_the_rules_of_comfyui_find_the_names_that_were_written_before(lora):
    "The test above can fail: of e47f7ad's file for SDXL 1,216 of 1,472 keys were left over."
    from hgdpo_curate.adapters import LORA_FILE
    kind, folder = lora
    keys = [
        k.replace('.processor.', '.').replace('.to_out_lora.', '.to_out.0_lora.').replace('_lora.', '.lora.')
         .replace('text_encoder.text_model.', 'text_encoder.')
        for k in load_file(folder/LORA_FILE)
    ]
    assert len(left_over(keys, comfy_keys(kind), COMFY_ENDINGS)) == dict(sd1=352, sd2=440, sdxl=1216)[kind]


# A1111, extensions-builtin/Lora/networks.py: convert_diffusers_name_to_compvis, load_network, assign_network_names
def compvis(key, sd2):
    if m := re.match(r'lora_unet_down_blocks_(\d+)_attentions_(\d+)_(.+)', key):
        return f'diffusion_model_input_blocks_{1 + int(m[1])*3 + int(m[2])}_1_{m[3]}'
    if m := re.match(r'lora_unet_mid_block_attentions_(\d+)_(.+)', key): return f'diffusion_model_middle_block_1_{m[2]}'
    if m := re.match(r'lora_unet_up_blocks_(\d+)_attentions_(\d+)_(.+)', key):
        return f'diffusion_model_output_blocks_{int(m[1])*3 + int(m[2])}_1_{m[3]}'
    if m := re.match(r'lora_te_text_model_encoder_layers_(\d+)_(.+)', key):
        if sd2: return f'model_transformer_resblocks_{m[1]}_{m[2].replace("self_attn", "attn")}'
        return f'transformer_text_model_encoder_layers_{m[1]}_{m[2]}'
    if m := re.match(r'lora_te2_text_model_encoder_layers_(\d+)_(.+)', key):
        return f'1_model_transformer_resblocks_{m[1]}_{m[2].replace("self_attn", "attn")}'
    return key.replace('lora_te1_text_model', '0_transformer_text_model')


def a1111_modules(kind):
    names = {
        'diffusion_model_' + f'{ldm}.transformer_blocks.{t}.{layer}'.replace('.', '_')
        for _, ldm, t in transformers_of(kind) for layer in ATTENTION
    }
    clip = 'transformer_text_model_encoder_layers_{}_self_attn_{}'
    open_clip = 'model_transformer_resblocks_{}_attn'          # one module, its projections are told by their names
    if kind == 'sd1': names |= {clip.format(i, p) for i in range(12) for p in PROJECTIONS}
    if kind == 'sdxl': names |= {'0_' + clip.format(i, p) for i in range(12) for p in PROJECTIONS}
    prefix, layers = dict(sd1=('', 0), sd2=('', 24), sdxl=('1_', 32))[kind]
    for i in range(layers): names |= {prefix + open_clip.format(i), prefix + open_clip.format(i) + '_out_proj'}
    return names


def test_a1111_knows_every_key_and_takes_the_file_for_its_base(lora):
    from hgdpo_curate.adapters import twin_file
    kind, folder = lora
    modules, failed = a1111_modules(kind), []
    for key in load_file(twin_file(folder)):
        layer, _, part = key.partition('.')
        assert part in ('lora_up.weight', 'lora_down.weight', 'alpha')
        name = compvis(layer, kind == 'sd2')
        without = re.sub(r'_[qkv]_proj$', '', name)
        if name not in modules and without not in modules: failed.append(key)
    assert failed == []
    with safe_open(twin_file(folder), 'pt') as f: header = f.metadata()
    # NetworkOnDisk.detect_version
    if header.get('ss_base_model_version', '').startswith('sdxl_'): version = 'sdxl'
    elif header.get('ss_v2') == 'True': version = 'sd2'
    else: version = 'sd1'
    assert version == kind and header['ss_output_name'] == 'people-paper' == twin_file(folder).stem


# kohya's networks/lora.py: LoRANetwork names a layer by prefix, class of the block and name, with underscores
def test_kohyas_network_has_every_key_of_the_twin(lora):
    from hgdpo_curate.adapters import twin_file
    kind, folder = lora
    layers = {
        'lora_unet_' + f'{name}.transformer_blocks.{t}.{layer}'.replace('.', '_')
        for name, _, t in transformers_of(kind) for layer in ATTENTION
    }
    prefixes = ('lora_te1', 'lora_te2') if kind == 'sdxl' else ('lora_te',)
    for prefix, count in zip(prefixes, (BLOCKS[kind]['text'], 32)):
        layers |= {
            f'{prefix}_text_model_encoder_layers_{i}_self_attn_{p}' for i in range(count) for p in PROJECTIONS
        }
    keys = [*load_file(twin_file(folder))]
    assert left_over(keys, layers, ['.lora_up.weight', '.lora_down.weight', '.alpha']) == []
    assert {k.split('.')[0] for k in keys} == layers
    with safe_open(twin_file(folder), 'pt') as f: header = f.metadata()
    assert header['ss_network_module'] == 'networks.lora'
    assert header['ss_network_dim'] == header['ss_network_alpha'] == '1'
    # sd_scripts library/sai_model_spec.py
    assert header['modelspec.sai_model_spec'] == '1.0.0' and header['modelspec.architecture'].endswith('/lora')


def test_what_was_written_is_read_and_so_are_the_files_of_the_first_version(lora):
    from hgdpo_curate.adapters import KOHYA_FILE, LORA_FILE, read_lora, save_lora, twin_file
    from safetensors.torch import save_file
    kind, folder = lora
    given, back = states(kind), read_lora(folder)
    assert back.keys() == given.keys()
    for part, state in given.items():
        assert back[part].keys() == state.keys() and all(torch.equal(v, back[part][k]) for k, v in state.items())
    # e47f7ad: diffusers' newer names, and a text encoder without `text_model`
    old = folder.parent/'old'
    old.mkdir()
    spelling = {'unet': '.lora.', 'text_encoder': '.lora_linear_layer.', 'text_encoder_2': '.lora_linear_layer.'}
    tensors = {
        f'{p}.{k}'.replace('.lora_A.', f'{spelling[p]}down.').replace('.lora_B.', f'{spelling[p]}up.'): v
        for p, s in given.items() for k, v in s.items()
    }
    save_file(tensors, old/LORA_FILE)
    save_file(tensors, old/KOHYA_FILE)
    back = read_lora(old)
    for part, state in given.items(): assert back[part].keys() == state.keys()
    assert twin_file(old).name == KOHYA_FILE
    # trained again, the twin of the first version does not stay beside the new one with other weights
    save_lora(old, **given)
    assert [p.name for p in sorted(old.glob('*.safetensors'))] == ['people-paper-old.safetensors', LORA_FILE]


def test_a_renamed_workspace_has_one_twin_per_run(tmp_path):
    from hgdpo_curate.adapters import LORA_FILE, save_lora, twin_file
    from safetensors.torch import save_file
    layer = 'mid_block.attentions.0.transformer_blocks.0.attn1.to_q'
    given = dict(unet={f'{layer}.lora_{m}.weight': torch.ones(1, 1) for m in 'AB'})
    final = tmp_path/'people'/'runs'/'paper'/'final'
    save_lora(final, **given)
    final = (tmp_path/'people').rename(tmp_path/'my folk')/'runs'/'paper'/'final'
    assert twin_file(final).name == 'people-paper.safetensors'                # still read
    # a LoRA of somebody else's stays
    save_file(given['unet'], final/'other.safetensors', metadata={'a': 'b'})
    save_lora(final, **given)
    there = {p.name for p in final.glob('*.safetensors')}
    assert there == {LORA_FILE, 'my_folk-paper.safetensors', 'other.safetensors'}
    assert twin_file(final).name == 'my_folk-paper.safetensors'


@pytest.mark.parametrize('folder, name', [
    ('people/runs/paper/final', 'people-paper'),
    ('people/runs/paper/easy', 'people-paper-easy'),
    ('my people: 2/runs/paper/final', 'my_people_2-paper'),
    ('人/runs/paper/final', '人-paper'),
    ('loras/mine', 'mine'),
])
def test_the_twin_is_named_by_workspace_and_run(folder, name, tmp_path):
    from hgdpo_curate.adapters import twin_name
    assert twin_name(tmp_path/folder) == name + '.safetensors'
