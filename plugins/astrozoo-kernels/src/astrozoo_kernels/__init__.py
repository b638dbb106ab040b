"""flash-attn and xFormers as attention backends of astrozoo; see `astrozoo_kernels.hooks`."""
