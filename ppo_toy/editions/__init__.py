"""Editions of the notebooks in other languages: kept equal to the English ones, and checked."""
