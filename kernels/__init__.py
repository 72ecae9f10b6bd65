"""The Triton kernels, one file an operation; imported as `fastfss.kernels`.

fastfss.ops imports a kernel's file when a call is to run there, and Triton with it: `import
fastfss` loads neither. A file holds the formula, the constants with their reasons, the kernels and
the functions that launch them on flat maps (B, C, N); checks and gradients' wiring are in
fastfss/ops.
"""
