"""Reports for people: a run's JSON files as one HTML page, as PNGs, and as the README's section.

results.py     the JSON files of a folder, and what kind each is
content.py     what a section is made of: tables and plots, without their looks
bench.py, scale.py, hit_ratios.py, driving.py, comparison.py, planned.py: file → section
drawing.py     a plot → SVG or PNG (matplotlib)
page.py        sections → HTML that needs no network and no scripts
readme.py      the README's section, in Markdown
command.py     `python -m askonce_loadtest report`
"""
