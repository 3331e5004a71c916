"""Triton kernels tested without a GPU: run by Triton's interpreter (interpreter.py), and compiled
for GPUs that are not there (compiled.py). test_triton_kernels.py runs the files check_*.py, each in
a process of its own: Triton takes its interpreter only if the environment says so before a kernel's
module is imported.
"""
