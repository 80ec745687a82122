"""How Sphinx makes the website: `make docs`.

The source is the whole checkout, so that links to results of benchmarks and to code lead somewhere.
"""

from nnunet_imbal import __version__

project = "nnunet-imbal"
release = __version__
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**", "benchmarks/README.md", "benchmarks/results/*.md", "monai_ext/bundle/docs/*.md"]
exclude_patterns = ["docs/conf.py"]

extensions = ["myst_parser"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"nnunet-imbal {release}"
html_copy_source = False
