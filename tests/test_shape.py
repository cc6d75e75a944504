"""The shape that CONTRIBUTING promises: short lines, short cells, short functions, one home for every name."""
import ast
import json
import re
from statistics import median

from conftest import ROOT

PACKAGE = ROOT/'hgdpo_curate'
MODULES = sorted(p for p in PACKAGE.rglob('*.py') if p.name not in ('__init__.py', '_modidx.py'))
NOTEBOOKS = sorted((ROOT/'nbs').glob('[0-9]*/[0-9]*.ipynb'))


def code_cells(notebook) -> list: # (source, whether it is exported)
    cells = [''.join(c['source']) for c in json.loads(notebook.read_text())['cells'] if c['cell_type'] == 'code']
    return [(s, bool(re.match(r'#\|\s*export\b', s))) for s in cells if s.strip() and 'default_exp' not in s]


def functions() -> list: # (lines, module, name)
    return [
        (node.end_lineno - node.lineno + 1, path.stem, node.name)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    ]


def crowded(tree) -> list: # line numbers
    "Dicts of more than three entries and calls of more than four arguments that do not have one entry a line."
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    found = []
    for node in ast.walk(tree):
        if id(node) in inside: continue
        entries, most = [], 0
        if isinstance(node, ast.Dict): entries, most = [k or v for k, v in zip(node.keys, node.values)], 3
        if isinstance(node, ast.Call):
            entries = [a.value if isinstance(a, ast.keyword) else a for a in (*node.args, *node.keywords)]
            most = 3 if getattr(node.func, 'id', '') == 'dict' else 4
        if len(entries) > most and len({e.lineno for e in entries}) < len(entries): found.append(node.lineno)
    return found


def test_no_line_of_a_module_passes_120_columns():
    for path in MODULES:
        text = re.sub(r"__all__ = \[.*?\]", '', path.read_text(), flags=re.S)     # nbdev writes it, a few columns wider
        assert [n for n, line in enumerate(text.splitlines(), 1) if len(line) > 120] == [], path


def test_an_entry_a_line_where_there_are_many():
    places = {str(p): lines for p in MODULES if (lines := crowded(ast.parse(p.read_text())))}
    assert places == {}
    assert crowded(ast.parse('dict(a=1, b=2, c=3, d=4)')) and crowded(ast.parse('f(1, 2,\n3, 4, 5)'))


def test_exported_cells_and_functions_are_short():
    cells = [source.count('\n') for nb in NOTEBOOKS for source, exported in code_cells(nb) if exported]
    assert max(cells) <= 60 and median(cells) <= 15
    lengths = sorted(f[0] for f in functions())
    assert lengths[-1] <= 60 and median(lengths) <= 10 and lengths[int(.9*len(lengths))] <= 30


def test_rooms_are_small_and_show_something_soon():
    first = []
    for nb in NOTEBOOKS:
        lines, cells = 0, code_cells(nb)
        for source, exported in cells:
            if not exported: break
            lines += source.count('\n')
        first.append(lines)
        assert sum(s.count('\n') for s, exported in cells if exported) <= 450, nb
    assert median(first) <= 50 and max(first) <= 60


def test_wings_and_rooms_are_numbered_from_zero():
    wings = sorted(p.name for p in (ROOT/'nbs').glob('[0-9]*'))
    assert [int(w.split('_')[0]) for w in wings] == list(range(len(wings)))
    for wing in wings:
        numbers = sorted(int(p.name.split('_')[0]) for p in (ROOT/'nbs'/wing).glob('[0-9]*.ipynb'))
        assert numbers == list(range(len(numbers))), wing


def test_no_public_name_stands_in_two_modules():
    homes = {}
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            names = [node.name] if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else []
            if isinstance(node, ast.Assign): names = [t.id for t in node.targets if isinstance(t, ast.Name)]
            for name in names:
                if not name.startswith('_'): homes.setdefault(name, set()).add(path.relative_to(PACKAGE))
    assert {n: h for n, h in homes.items() if len(h) > 1} == {}
