"""Packaging: everything is said once, in settings.ini."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser(delimiters=['='])
config.read(Path(__file__).parent/'settings.ini', encoding='utf-8')
c = config['DEFAULT']

setup(
    name=c['lib_name'],
    version=c['version'],
    description=c['description'],
    author=c['author'],
    keywords=c['keywords'],
    long_description=(Path(__file__).parent / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['hgdpo_curate*']),
    include_package_data=True,
    python_requires='>=' + c['min_python'],
    install_requires=c['requirements'].split(),
    extras_require={extra: c[f'{extra}_requirements'].split() for extra in ('dev', 'hands', 'ray')},
    entry_points={'console_scripts': [c['console_scripts']], 'nbdev': [f'{c["lib_name"]}={c["lib_name"]}._modidx:d']},
    zip_safe=False,
)
