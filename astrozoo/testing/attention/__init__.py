"""The conformance kit of attentions: what each must do to be swapped for another by name.

subject  a small instance, tokens for it, and what it must refuse
cases    the tokens, where they lie, and how results are compared
claims   names, and a spec that is true
values   the fast path against the readable one, and what follows from the formula
masks    what is hidden cannot matter
biases   additive terms, weights and log-sum-exps
order    causality
caches   chunks of a sequence
modes    gradients, dropout, repeatability
numerics dtypes
kernels  backends
tools    torch.compile, saving, counted operations
kit      the list, and how to run it
"""
