"""Look at your photographs, document them, and train HG-DPO: real photographs as winners."""
__version__ = "0.2.0"


def _end_quietly(*_):  # Ctrl-C while `hgdpo` is still being loaded; `cli.exit_code` listens from then on
    import os
    os.write(2, b'\nhgdpo: interrupted; nothing was begun.\n')
    os._exit(130)


def _is_command():
    import sys
    name = getattr(sys, 'argv', [''])[0]
    if name == '-m': return sys.orig_argv[1:3] == ['-m', 'hgdpo_curate']
    return name.replace('\\', '/').rsplit('/', 1)[-1] in (
        'hgdpo',
        'hgdpo.exe',
        'hgdpo-script.py',
    )


if _is_command():
    import signal as _signal
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler: _signal.signal(_signal.SIGINT, _end_quietly)

_PUBLIC = {
    name: module
    for module, names in {
        'files': 'UserError UsageError',
        'workspace': 'Workspace create_workspace open_workspace workspace_status',
        'registry': 'register_scorer register_detector register_extractor',
        'images.photos': 'import_photos',
        'images.pool': 'generate_pool',
        'images.recon': 'reconstruct sdrecon',
        'judge.scores': 'score_images load_scorer',
        'judge.anatomy': 'flag_images',
        'curate.splits': 'draft_pairs freeze_split load_split',
        'curate.app': 'build_dataset open_app read_reviews',
        'train.presets': 'load_preset',
        'train.curriculum': 'train_curriculum',
        'train.sft': 'train_sft',
        'train.inference': 'load_for_inference',
        'train.personalise': 'load_personalised face_embedding',
        'train.samples': 'sample_images',
        'train.small_models': 'train_tiny',
        'evaluate.candidates': 'Candidate',
        'evaluate.compare': 'compare_arms',
        'evaluate.guidance': 'tune_base',
        'evaluate.results': 'evaluate_runs pool_picture',
        'evaluate.report': 'report_runs write_report',
        'evaluate.reproduce': 'reproduce_table',
        'evaluate.study': 'open_study study_results',
        'document.answers': 'write_questions',
        'document.data_card': 'make_card',
        'document.model_card': 'write_model_card',
        'document.forget': 'forget',
        'pack': 'pack_workspace',
        'plan': 'plan_workspace',
        'unpack': 'unpack_workspace',
        'demo': 'run_demo',
        'doctor': 'check_machine',
    }.items()
    for name in names.split()
}
__all__ = list(_PUBLIC)  # noqa: PLE0605


_RENAMED = {'Arm': 'Candidate'}    # kept for one version


def __getattr__(name):  # imported on first use, so that `import hgdpo_curate` stays instant
    name = _RENAMED.get(name, name)
    if name not in _PUBLIC: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    import importlib
    return getattr(importlib.import_module(f'{__name__}.{_PUBLIC[name]}'), name)


def __dir__(): return [*globals(), *__all__]
