"""What is said below a cell that failed for a reason for which the lab has a remedy."""

from __future__ import annotations

import pytest

from tests.notebook.kernels import Kernel

MAIN = "import asyncio, txlab\nasync def main(): return 7\n"
POINTER = "txlab.allow_asyncio_run()"


@pytest.fixture(scope="module")
def lab_kernel(kernel: Kernel) -> Kernel:
    kernel.ok("import warnings; warnings.simplefilter('ignore')\n" + MAIN)
    return kernel


@pytest.mark.parametrize(
    "call",
    [
        "asyncio.run(main())",
        "with asyncio.Runner() as runner: runner.run(main())",
        "asyncio.get_event_loop().run_until_complete(main())",
        "try:\n    asyncio.run(main())\nexcept RuntimeError as error:\n    raise ValueError('no') from error",
    ],
)
def test_a_nested_loop_is_explained_while_the_extension_is_loaded(lab_kernel: Kernel, call: str) -> None:
    lab_kernel.ok("%load_ext txlab\n%reload_ext txlab")
    cell = lab_kernel.run(call)
    assert cell.status == "error"
    assert cell.text.count(POINTER) == 1
    lab_kernel.ok("%unload_ext txlab")
    cell = lab_kernel.run(call)
    assert cell.status == "error"
    assert POINTER not in cell.text


@pytest.mark.parametrize(
    "call",
    ["try:\n    asyncio.run(main())\nexcept RuntimeError:\n    print('caught')", "raise RuntimeError('mine')", "1 +"],
)
def test_nothing_is_said_of_anything_else(lab_kernel: Kernel, call: str) -> None:
    lab_kernel.ok("%load_ext txlab")
    assert POINTER not in lab_kernel.run(call).text


def test_the_remedy_works(lab_kernel: Kernel) -> None:
    lab_kernel.ok("%load_ext txlab\ntxlab.allow_asyncio_run()")
    cell = lab_kernel.ok("print(asyncio.run(main()))")
    assert cell.text == "7\n"
