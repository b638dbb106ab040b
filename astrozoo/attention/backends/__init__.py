"""The kernels that softmax attention can run on, one module each. `astrozoo.attention.choice` picks among them.

base     what a backend is, and what several share
sdpa     PyTorch's fused kernels
flex     PyTorch's compiled block-sparse kernel
chunked  blocks of queries, for long sequences that no fused kernel takes
math     matrix products and a softmax, for everything
probe    trying a kernel once before it is trusted

Others come from plugins, through the hook `astrozoo_attention_backends`.
"""
