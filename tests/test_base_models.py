"""Base models as people have them: other solvers' configurations, another noise, half precision only, a refiner."""
import json
import shutil

import numpy as np
import pytest
from hgdpo_curate.files import UserError

SD_BETAS = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule='scaled_linear',
    num_train_timesteps=1000,
)
SIZE = (64, 64)


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    "The three families with random weights, copied for every case."
    from hgdpo_curate.toy.layouts import random_sd15, random_sd2, random_sdxl
    root = tmp_path_factory.mktemp('models')
    return dict(sd15=random_sd15(root/'sd15'), sd2=random_sd2(root/'sd2'), sdxl=random_sdxl(root/'sdxl'))


@pytest.fixture
def variant(models, tmp_path):
    "A copy of a model with other settings in one of its files; None leaves a setting out."
    def make(family, file='scheduler/scheduler_config.json', whole=False, **settings):
        folder = shutil.copytree(models[family], tmp_path/'model', dirs_exist_ok=True)
        config = settings if whole else json.loads((folder/file).read_text()) | settings
        (folder/file).write_text(json.dumps(config))
        return folder
    return make


def draw(pipe, **start):
    from hgdpo_curate.pipelines import encode_prompts, encode_unconditional, make_images
    prompts = encode_prompts(pipe, ['a person'])
    return np.asarray(
        make_images(
            pipe,
            prompts,
            encode_unconditional(pipe),
            [1],
            SIZE,
            2,
            3.0,
            **start,
        )[0]
    ).astype(int)


# as checkpoints of dreamshaper, of A1111's converters and of older diffusers have them
SOLVERS = dict(
    deis=dict(
        _class_name='DEISMultistepScheduler',
        algorithm_type='deis',
        solver_type='logrho',
        solver_order=2,
    ),
    unipc=dict(
        _class_name='UniPCMultistepScheduler',
        solver_type='bh2',
        solver_order=2,
        predict_x0=True,
    ),
    old_dpm=dict(_class_name='DPMSolverMultistepScheduler', algorithm_type='dpmsolver', solver_order=2),
    karras=dict(_class_name='DPMSolverMultistepScheduler', algorithm_type='dpmsolver++', use_karras_sigmas=True),
    exponential=dict(_class_name='EulerDiscreteScheduler', use_exponential_sigmas=True),
    lu=dict(_class_name='DPMSolverMultistepScheduler', algorithm_type='dpmsolver++', use_lu_lambdas=True),
    beta=dict(_class_name='EulerDiscreteScheduler', use_beta_sigmas=True),
)


@pytest.mark.parametrize('name, sampler', [*((n, 'dpm') for n in SOLVERS), ('karras', 'euler'), ('karras', 'ddim')])
def test_a_base_with_another_solvers_configuration_draws_and_reconstructs(name, sampler, variant):
    from hgdpo_curate import sdrecon
    from hgdpo_curate.pipelines import load_pipeline
    from hgdpo_curate.toy.drawings import draw_person
    folder = variant(
        'sd15',
        whole=True,
        steps_offset=1,
        **SD_BETAS,
        **SOLVERS[name],
    )
    pipe = load_pipeline(folder, 'cpu', sampler=sampler)
    before, scheduler = draw(pipe), pipe.scheduler
    photo = draw_person(1).pil().resize(SIZE)
    low, high = (
        np.asarray(
            sdrecon(
                pipe,
                photo,
                'a person',
                t,
                1,
                2,
                3.0,
            )
        ).astype(int)
        for t in (100, 700)
    )
    assert (low != high).any()
    # the spacing of noise that the base came with is its own again
    assert pipe.scheduler is scheduler and np.abs(draw(pipe) - before).max() <= 1


@pytest.mark.parametrize('name', SOLVERS)
def test_the_cards_sampler_is_the_one_that_the_toolkit_gives_such_a_base(name, variant):
    import diffusers

    from hgdpo_curate.document.model_card import loading, sampler_arguments
    from hgdpo_curate.pipelines import load_pipeline
    from hgdpo_curate.runs import RunConfig
    folder = variant('sd15', steps_offset=1, timestep_spacing='leading', **SD_BETAS, **SOLVERS[name])
    preset = dict(pool=dict(resolution='64'), stages=[], inference=dict(lora_weight=0.5, steps=2, guidance=2.0))
    card = loading(RunConfig(preset, str(folder)), sampling=sampler_arguments(str(folder)))
    line = card[card.index('pipe.scheduler = ') : card.index('pipe.load_lora_weights')]
    plain = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    exec(line, dict(pipe=plain, DPMSolverMultistepScheduler=diffusers.DPMSolverMultistepScheduler))
    assert plain.scheduler.config == load_pipeline(folder, 'cpu').scheduler.config
    assert plain.scheduler.config.timestep_spacing == 'linspace'


def test_a_reconstruction_by_ddim_is_ddims(models):
    "From the first level down it takes the steps that DDIM itself takes on its grid."
    import torch
    from hgdpo_curate.pipelines import entered_midway, load_pipeline
    pipe = load_pipeline(models['sd15'], 'cpu', sampler='ddim')
    pipe.scheduler.register_to_config(clip_sample=False)      # as the hub's own configurations say
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    pipe.scheduler.set_timesteps(10)
    grid = [int(t) for t in pipe.scheduler.timesteps]
    step = pipe.scheduler.step(noise*.5, grid[3], noise).prev_sample
    with entered_midway(pipe):
        pipe.scheduler.set_timesteps(timesteps=grid)
        pipe.scheduler._step_index = 3
        assert torch.allclose(pipe.scheduler.step(noise*.5, grid[3], noise).prev_sample, step, atol=1e-5)


WRONG = dict(
    edm=(
        'sdxl',
        dict(
            _class_name='EDMDPMSolverMultistepScheduler',
            sigma_min=0.002,
            sigma_max=80.0,
            sigma_data=0.5,
            num_train_timesteps=1000,
            prediction_type='epsilon',
        ),
        'EDM',
    ),
    flow=('sdxl', dict(_class_name='FlowMatchEulerDiscreteScheduler', shift=3.0, num_train_timesteps=1000), 'flow'),
    flow_sigmas=(
        'sd15',
        dict(
            _class_name='DPMSolverMultistepScheduler',
            use_flow_sigmas=True,
            prediction_type='flow_prediction',
            **SD_BETAS,
        ),
        'flow',
    ),
    sample=('sd15', dict(_class_name='DDIMScheduler', prediction_type='sample', **SD_BETAS), 'sample'),
    continuous=(
        'sdxl',
        dict(_class_name='EulerDiscreteScheduler', timestep_type='continuous', **SD_BETAS),
        'continuous',
    ),
    no_betas=('sd15', dict(_class_name='CMStochasticIterativeScheduler', sigma_min=0.002), 'betas'),
)


@pytest.mark.parametrize('name', WRONG)
def test_a_base_with_another_noise_is_refused_before_its_weights_are_read(name, variant):
    from hgdpo_curate.pipelines import load_pipeline
    family, config, word = WRONG[name]
    folder = variant(family, whole=True, **config)
    for f in folder.glob('*/*.safetensors'): f.write_bytes(b'')
    with pytest.raises(UserError, match=word) as e: load_pipeline(folder, 'cpu')
    assert str(folder) in str(e.value)


@pytest.mark.parametrize('setting', [dict(latents_mean=[-1.6, 1.9, -1.4, 2.5]), dict(shift_factor=.1)])
def test_a_vae_that_does_more_than_scale_is_refused(setting, variant):
    from hgdpo_curate.pipelines import load_pipeline
    folder = variant('sdxl', 'vae/config.json', **setting)
    with pytest.raises(UserError, match=[*setting][0]): load_pipeline(folder, 'cpu')


@pytest.mark.parametrize('setting, word', [(dict(in_channels=9), 'inpainting'), (dict(time_cond_proj_dim=256), 'LCM')])
def test_a_denoiser_that_wants_more_is_refused(setting, word, variant):
    from hgdpo_curate.pipelines import load_pipeline
    with pytest.raises(UserError, match=word): load_pipeline(variant('sd15', 'unet/config.json', **setting), 'cpu')


def test_the_refiner_is_refused_by_name(variant):
    from hgdpo_curate.pipelines import load_pipeline
    refiner = dict(
        _class_name='StableDiffusionXLImg2ImgPipeline',
        text_encoder=[None, None],
        tokenizer=[None, None],
        requires_aesthetics_score=True,
    )
    folder = variant('sdxl', 'model_index.json', **refiner)
    with pytest.raises(UserError, match='refiner.*base-1.0'): load_pipeline(folder, 'cpu')
    with pytest.raises(UserError, match='no text_encoder'):
        load_pipeline(variant('sdxl', 'model_index.json', **refiner | dict(requires_aesthetics_score=False)), 'cpu')


@pytest.mark.parametrize('parts', [('unet', 'vae', 'text_encoder'), ('unet',)])
def test_a_folder_with_half_precision_weights_only_is_loaded(parts, models, tmp_path):
    from hgdpo_curate.pipelines import load_pipeline, model_hash
    folder = shutil.copytree(models['sd15'], tmp_path/'model')
    for f in [f for part in parts for f in (folder/part).glob('*.safetensors')]:
        f.rename(f.with_name(f.name.replace('.safetensors', '.fp16.safetensors')))
    assert len(model_hash(folder)) == 16
    assert np.abs(draw(load_pipeline(folder, 'cpu')) - draw(load_pipeline(models['sd15'], 'cpu'))).max() <= 1


def test_an_index_that_is_no_json_is_named(variant):
    from hgdpo_curate.pipelines import load_pipeline
    folder = variant('sd15')
    (folder/'model_index.json').write_text('{"_class_name": ')
    with pytest.raises(UserError, match='model_index.json.*JSON'): load_pipeline(folder, 'cpu')


def test_the_base_of_the_package_is_one_whose_tiny_vae_names_a_shift_of_nothing():
    from hgdpo_curate.families import family_in
    from hgdpo_curate.pipelines import MANNEQUIN, pipeline_folder
    folder = pipeline_folder(MANNEQUIN)
    assert json.loads((folder/'vae'/'config.json').read_text())['shift_factor'] == 0
    family_in(folder).check(folder)


REFUSED = dict(
    noise=('sdxl', 'scheduler/scheduler_config.json', WRONG['edm'][1]),
    vae=('sdxl', 'vae/config.json', dict(latents_mean=[-1.6, 1.9, -1.4, 2.5])),
    refiner=('sdxl', 'model_index.json', dict(_class_name='StableDiffusionXLImg2ImgPipeline',
                                              requires_aesthetics_score=True)),
    inpainting=('sd15', 'unet/config.json', dict(in_channels=9)),
)


@pytest.mark.parametrize('name', REFUSED)
def test_init_refuses_in_the_sentence_of_loading_without_reading_weights(name, variant, tmp_path, capsys):
    from hgdpo_curate.cli import main
    from hgdpo_curate.pipelines import load_pipeline
    family, file, settings = REFUSED[name]
    folder = variant(family, file, **settings)
    for f in folder.glob('*/*.safetensors'): f.write_bytes(b'')
    with pytest.raises(UserError) as e: load_pipeline(folder, 'cpu')
    init = ['init', '--workspace', str(tmp_path/'ws'), '--pretrained_model_name_or_path', str(folder)]
    assert main(init) == 1 and capsys.readouterr().err == f'hgdpo: {e.value}\n'
    assert not (tmp_path/'ws').exists()


def test_init_takes_half_precision_folders_hub_ids_and_refuses_folders_without_weights(models, tmp_path, capsys):
    from hgdpo_curate.cli import main
    folder = shutil.copytree(models['sd15'], tmp_path/'model')
    def init(name, base):
        return main(['init', '--workspace', str(tmp_path/name), '--pretrained_model_name_or_path', str(base)])
    for f in folder.glob('*/*.safetensors'): f.rename(f.with_name(f.name.replace('.safetensors', '.fp16.safetensors')))
    assert init('half', folder) == 0 and init('hub', 'owner/name') == 0
    for f in folder.glob('*/*.safetensors'): f.rename(f.with_suffix('.bin'))
    assert init('bin', folder) == 1 and 'has no weights as .safetensors' in capsys.readouterr().err
    assert init('empty', tmp_path) == 1 and 'holds no model_index.json' in capsys.readouterr().err
