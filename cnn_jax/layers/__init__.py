"""Layers: pure functions, and thin Linen modules over them where a model needs one."""
