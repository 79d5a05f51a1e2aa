"""Fuzz targets: one for each decoder of bytes that another machine, a disk or a stranger may have made.

``./dev bench fuzz`` runs them under atheris; the unit tests run each a little under hypothesis.
"""
