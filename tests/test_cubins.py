"""The kernels as machine code (cubins.py has the rules), and that the rules can be broken."""

import cubins
import pytest
from cubins import CHIPS, Kernel


@pytest.fixture(scope="module")
def kernels():
    if reason := cubins.why_not():
        pytest.skip(reason)
    return cubins.kernels()


@pytest.mark.parametrize("source", [path.name for path in cubins.sources()])
@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.architecture)
def test_machine_code(kernels, source, chip):
    found = [kernel for kernel in kernels if (kernel.source, kernel.chip) == (source, chip)]
    assert found
    wrong = {kernel.name: words for kernel in found if (words := cubins.complaints(kernel))}
    assert not wrong
    assert all(kernel.registers and kernel.opcodes for kernel in found)


def test_every_promise_of_tensor_cores_is_made(kernels):
    """A promise that no kernel's name makes any more is one that nothing checks."""
    for promise in cubins.PROMISES:
        assert any(promise in kernel.name for kernel in kernels), promise


# ---- the rules ----

GOOD = {"MOV": 3, "HMMA.16816.F32.BF16": 8, "LDSM.16.M88.4": 2, "LDGSTS.E.BYPASS.LTC128B.128": 1}
NAME = "slices_kernel<TensorCoreProduct<__nv_bfloat16, 128, 64>, __nv_bfloat16, false>"


def kernel(**changes):
    facts = dict(name=NAME, source="a.cu", chip=CHIPS[0], registers=64, opcodes=GOOD)
    return Kernel(**facts | dict(stack=0, spills=0, shared=0) | changes)


def without(opcode):
    return {name: count for name, count in GOOD.items() if name != opcode}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, []),
        ({"stack": 8}, ["8 bytes of stack, 0 of spills"]),
        ({"spills": 4}, ["0 bytes of stack, 4 of spills"]),
        ({"opcodes": GOOD | {"LDL.64": 1, "STL": 2}}, ["3 accesses to local memory"]),
        ({"opcodes": GOOD | {"LDLX": 1}}, []),
        ({"shared": 163 << 10}, []),
        ({"shared": 200 << 10}, ["204800 bytes of shared memory, the chip has 166912"]),
        ({"shared": 200 << 10, "chip": CHIPS[1]}, []),
        ({"opcodes": without("HMMA.16816.F32.BF16")}, ["no HMMA.16816.F32.BF16"]),
        ({"opcodes": {"FFMA": 9}}, ["no HMMA.16816.F32.BF16 and no LDSM", "no LDGSTS"]),
        ({"opcodes": {"FFMA": 9}, "name": "pack_kernel<__nv_bfloat16>"}, []),
    ],
)
def test_complaints(changes, words):
    assert cubins.complaints(kernel(**changes)) == words


# ---- what the tools print ----

LOG = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z1av' for 'sm_80'
ptxas info    : Function properties for _Z1av
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 1024 bytes smem, 400 bytes cmem[0]
ptxas info    : Compile time = 27.784 ms
ptxas info    : Compiling entry function '_Z1bv' for 'sm_80'
ptxas info    : Function properties for _Z1bv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Function properties for _Z6helperv
    0 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 18 registers, used 0 barriers, 16 bytes cumulative stack size
"""

ASSEMBLY = """\
//--------------------- .text._Z1av --------------------------
\t.section\t.text._Z1av,"ax",@progbits
_Z1av:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 BRA `(.L_x_0) ;
        /*0020*/             @!UP1 LDC R1, c[0x0][0x28] ;
.L_x_0:
        /*0030*/                   HMMA.16816.F32 R4, R8, R2, R4 ;
\t.section\t.text._Z1bv,"ax",@progbits
        /*12340*/                  EXIT ;
"""


def test_resources():
    assert cubins.resources(LOG) == {
        "_Z1av": dict(registers=255, stack=16, spills=20, shared=1024),
        "_Z1bv": dict(registers=18, stack=0, spills=0, shared=0),
        "_Z6helperv": dict(registers=0, stack=0, spills=8, shared=0),
    }


def test_instructions():
    assert cubins.instructions(ASSEMBLY) == {
        "_Z1av": {"LDC": 2, "BRA": 1, "HMMA.16816.F32": 1},
        "_Z1bv": {"EXIT": 1},
    }


def test_a_change_of_an_included_file_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(cubins, "ROOT", tmp_path)
    monkeypatch.setattr(cubins, "output_of", lambda *command: "")
    (tmp_path / "csrc/op").mkdir(parents=True)
    source, header = tmp_path / "csrc/op/op.cu", tmp_path / "csrc/op/op.cuh"
    source.write_text('#include "op/op.cuh"\n#include <cstdint>\n')
    header.write_text('#include "op/op.cuh"\n')
    before = cubins.fingerprint(source, ["nvcc"])
    assert cubins.fingerprint(source, ["nvcc"]) == before
    assert cubins.fingerprint(source, ["nvcc", "-O1"]) != before
    header.write_text("// other\n")
    assert cubins.fingerprint(source, ["nvcc"]) != before


def test_table_marks_what_is_wrong():
    shown = cubins.table([kernel(), kernel(spills=4)])
    assert [row.style for row in shown.rows] == [None, "red"]
