"""Rust kernels for `astrozoo.accel`; see `astrozoo_rust.plugin` for how they are offered."""
