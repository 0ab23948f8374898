"""Weights from and to other libraries: their files, their names, their layouts."""
