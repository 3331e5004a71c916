"""A few tiny calls of every op with gradients, for compute-sanitizer, which slows them a
hundredfold. Data come from the CPU and go there: few kernels of other libraries run.

python -m gpu_check.tiny cuda
"""

import sys

import support
import torch

import blockops
from blockops import _dispatch

NAMES = ("one_row", "leading", "ragged_tile", "one_output", "few_outputs", "columns")


def main(device: str) -> None:
    for case in support.named(*NAMES):
        if _dispatch.why_not("native", case.op, device):
            continue
        for dtype in (torch.float32, torch.bfloat16):
            arguments, grad = support.inputs_of(case, dtype, device)
            with blockops.backend("native"):
                outputs = support.outputs_of(support.public(case), arguments, grad)
            assert all(output.cpu().isfinite().all() for output in outputs.values())
    print("tiny calls: done")


if __name__ == "__main__":
    main(*sys.argv[1:])
