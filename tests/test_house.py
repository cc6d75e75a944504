"""The house stands as it is drawn: rooms import only rooms with a lower number, and nothing happens on import."""
import ast
import re
import subprocess
import sys

from conftest import ROOT


def rooms():
    "Module -> (wing, number): top-level wings and their notebooks are numbered as data flows."
    out = {}
    for nb in sorted((ROOT/'nbs').glob('[0-9]*/[0-9]*.ipynb')):
        name = re.search(r'default_exp ([\w.]+)', nb.read_text())[1]
        out[name] = (int(nb.parent.name.split('_')[0]), int(nb.stem.split('_')[0]))
    return out


def test_every_room_has_a_number_of_its_own():
    places = [*rooms().values()]
    assert len(places) > 40 and len(set(places)) == len(places)


def test_a_room_imports_only_rooms_that_sort_before_it():
    number = rooms()
    for name, n in number.items():
        file = ROOT/'hgdpo_curate'/(name.replace('.', '/') + '.py')
        depth = name.count('.')
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.ImportFrom): continue
            if node.level: full = '.'.join([*name.split('.')[:depth + 1 - node.level], node.module or ''])
            elif (node.module or '').startswith('hgdpo_curate.'): full = node.module.removeprefix('hgdpo_curate.')
            else: continue
            assert number[full] < n, f'{name} {n} imports {full} {number[full]}'


def test_only_the_rooms_of_the_app_import_fiftyone():
    users = [
        p.name
        for p in (ROOT / 'hgdpo_curate').rglob('*.py')
        if re.search(r'^\s*(import|from) fiftyone', p.read_text(), re.M)
    ]
    assert sorted(users) == ['app.py', 'database.py', 'dataset.py', 'operators.py', 'panels.py', 'samples.py']


def test_import_loads_nothing_heavy():
    code = (
        'import sys, hgdpo_curate\n'
        "heavy = {'torch', 'diffusers', 'fiftyone', 'transformers', 'pandas', 'numpy', 'matplotlib'} & "
        "set(sys.modules)\n"
        'assert not heavy, heavy'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_public_names_are_importable_from_the_top():
    import hgdpo_curate
    for name in hgdpo_curate.__all__: assert callable(getattr(hgdpo_curate, name))


# what only the family may know, as a pattern -> rooms that may have it too, and why
FAMILY_ONLY = {
    r'\.unet\b': {'toy/networks.py'},                            # builds and saves pipelines of its own
    r'''['"]up_blocks\.''': set(),                               # `up_blocks` alone is a setting of recipes
    r'alphas_cumprod|\.add_noise\(.*scheduler|scheduler\.add_noise|get_velocity|init_noise_sigma': set(),
    r'config\.(prediction_type|scaling_factor)': {'train/small_base.py'},    # trains the tiny VAE and its scale
}


def test_only_the_families_room_knows_what_differs_between_base_models():
    "The denoiser's name, its late blocks, the arithmetic of noise schedules and the scale of latents."
    for pattern, others in FAMILY_ONLY.items():
        users = {
            str(p.relative_to(ROOT/'hgdpo_curate'))
            for p in (ROOT/'hgdpo_curate').rglob('*.py')
            if p.name != '_modidx.py' and re.search(pattern, p.read_text())
        }
        assert users - {'families.py'} <= others, pattern
        # the pattern still finds what it is for
        assert 'families.py' in users or others <= users, pattern
def test_no_public_name_stands_in_two_rooms():
    home = {}
    for name in rooms():
        text = (ROOT/'hgdpo_curate'/(name.replace('.', '/') + '.py')).read_text()
        listed = re.search(r'^__all__ = (\[.*?\])', text, re.M | re.S)
        for public in ast.literal_eval(listed[1]) if listed else []: home.setdefault(public, []).append(name)
    assert len(home) > 400
    assert {n: modules for n, modules in home.items() if len(modules) > 1} == {}


# --- the method's page

def texts(): # of modules and notebooks: name -> text
    files = [*(ROOT/'hgdpo_curate').rglob('*.py'), *(ROOT/'nbs').rglob('*.ipynb'), *(ROOT/'hgdpo_curate').rglob('*.md')]
    return {
        p.relative_to(ROOT).as_posix(): p.read_text()
        for p in files
        if '.ipynb_checkpoints' not in p.parts and p.name != '_modidx.py'
    }


def own_equations(text): # numbers that a text cites of docs/paper.md, not of a paper that it names with its year
    for found in re.finditer(r'[Ee]quations? \(?(\d+)\)?(?:(?:,| and| to) \(?(\d+)\)?)*', text):
        before = text[max(0, found.start() - 70):found.start()]
        if not re.search(r'et al\. (19|20)\d\d[^()]*$', before): yield from map(int, re.findall(r'\d+', found[0]))


def test_equations_of_the_method_are_numbered_in_order():
    numbers = [int(n) for n in re.findall(r'\\tag\{(\d+)\}', (ROOT/'docs'/'paper.md').read_text())]
    assert numbers == [*range(1, len(numbers) + 1)] and len(numbers) >= 12


def test_every_equation_and_section_that_is_cited_is_in_the_page_of_the_method():
    page = (ROOT/'docs'/'paper.md').read_text()
    equations = {int(n) for n in re.findall(r'\\tag\{(\d+)\}', page)}
    sections = {int(n) for n in re.findall(r'^## (\d+)\.', page, re.M)}
    assert [*own_equations('(Ho et al. 2020, equation 70), equations 5 and 6; equation (99)')] == [5, 6, 99]
    for name, text in texts().items():
        assert {*own_equations(text)} <= equations, f'{name} cites an equation that docs/paper.md does not have'
        cited = re.findall(r'docs/paper\.md,? sections? ((?:\d+(?:, | and )?)+)', text)
        assert {int(n) for c in cited for n in re.findall(r'\d+', c)} <= sections, f'{name}: {cited}'
    inside = {int(n) for n in re.findall(r'(?<![\w\\(])\((\d{1,2})\)', page)}
    assert inside - {0} <= equations, 'docs/paper.md cites an equation of its own that it does not have'


def test_nothing_cites_a_page_that_the_project_does_not_have():
    assert not [name for name, text in texts().items() if re.search(r'\bPAPER[ ]section|PAPER\.md', text)]
