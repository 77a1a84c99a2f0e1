"""People rate replies without knowing whose they are: packs go out, ratings come in.

criteria.py is what raters are asked, draw.py what is rated, pack.py by whom and in which order, page.py and export.py
what they are handed, ratings.py what is read back, outcome.py what it comes to.
"""
