"""The benchmark for a GPU runs to its end, with few libraries: its dry run, at small width on the CPU."""
import json
import subprocess
import sys

from conftest import ROOT

# a rented machine has torch and the model libraries, and often nothing to read tables or to look at pictures with
ALONE = """
import runpy, sys
from importlib.machinery import PathFinder
absent = {'duckdb', 'fiftyone', 'pyarrow', 'tomli_w', 'scipy', 'sklearn', 'matplotlib', 'bitsandbytes', 'cv2'}
finds = PathFinder.find_spec
PathFinder.find_spec = staticmethod(lambda name, *a: None if name.split('.')[0] in absent else finds(name, *a))
sys.argv = ['gpu.py', '--dry-run', '--output', sys.argv[1]]
runpy.run_path('benchmarks/gpu.py', run_name='__main__')
"""


def test_every_part_of_the_gpu_benchmark_runs_on_a_cpu_without_tables_or_fiftyone(tmp_path):
    done = subprocess.run(
        [sys.executable, '-c', ALONE, str(tmp_path/'figures.json')], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads((tmp_path/'figures.json').read_text())
    names = {}
    for r in found['rows']: names.setdefault(r['part'], []).append(r['name'])
    assert found['dry_run'] and not any(r.get('failed') for r in found['rows'])
    assert {'public step', 'ours', 'ours, fixed draws'} < set(names['training sd15']) and names['training sdxl']
    rates = {r['name']: r['pairs_per_second'] for r in found['rows'] if r['part'] == 'training sd15'}
    assert all(rate > 0 for rate in rates.values())
    # what a step computes is counted: a reference that is kept costs a forward less
    flops = {r['name']: r['tflop_a_pair'] for r in found['rows'] if r['part'] == 'training sd15'}
    assert flops['ours, fixed draws'] < flops['ours'] < flops['ours, checkpointing']
    assert {'float32', 'bfloat16', 'float16'} < set(names['precision']) and 'ours' in names['pool']
