"""Devices that a training can be planned for: memory, operations a second, and how fast they send, by data sheets."""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass

from pyro_ltm.config import suggest
from pyro_ltm.errors import UserError

BYTES = 10**9


@dataclass(frozen=True, kw_only=True)
class Device:
    """One device, as its maker describes it.

    Attributes:
        kind: whose kernels it runs, as torch names them: `cuda` or `cpu`.
        memory_bytes: of its memory.
        half_flops, single_flops: operations a second of dense products in bfloat16 (summed in single precision) and in
            float32; None: not known.
        link_bytes: a second that it sends to its neighbours, one way; None: not known.
        source: of these figures.
    """

    name: str
    kind: str = "cuda"
    memory_bytes: int
    half_flops: float | None = None
    single_flops: float | None = None
    link_bytes: float | None = None
    source: str = "as given"

    def flops(self, dtype: str) -> float | None:
        """Operations a second in `dtype`, `bfloat16` or `float32`."""
        return self.half_flops if dtype == "bfloat16" else self.single_flops


def _card(name: str, gigabytes: int, half: float, single: float, link: float, sheet: str) -> Device:
    """A card: `half` and `single` in teraflops, `link` in gigabytes a second of both ways, as makers count them."""
    return Device(
        name=name,
        memory_bytes=gigabytes * BYTES,
        half_flops=half * 1e12,
        single_flops=single * 1e12,
        link_bytes=link / 2 * BYTES,
        source=f"data sheet: {sheet}",
    )


CARDS = {
    card.name.lower(): card
    for card in (
        _card("B200", 180, 2250, 75, 1800, "NVIDIA HGX B200, NVLink"),
        _card("H200", 141, 989, 67, 900, "NVIDIA H200 SXM, NVLink"),
        _card("H100", 80, 989, 67, 900, "NVIDIA H100 SXM, NVLink"),
        _card("H100-PCIe", 80, 756, 51, 128, "NVIDIA H100 PCIe, PCIe 5.0 x16"),
        _card("A100", 80, 312, 19.5, 600, "NVIDIA A100 SXM 80 GB, NVLink"),
        _card("A100-40GB", 40, 312, 19.5, 600, "NVIDIA A100 SXM 40 GB, NVLink"),
        _card("L40S", 48, 362, 91.6, 64, "NVIDIA L40S, PCIe 4.0 x16"),
        _card("4090", 24, 165.2, 82.6, 64, "NVIDIA Ada GPU architecture, RTX 4090, PCIe 4.0 x16"),
    )
}
"""By name in small letters. Without TF32, which torch does not use unasked."""


def this_cpu() -> Device:
    """The processors of this machine; what they compute and send is not known."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Device(name="cpu", kind="cpu", memory_bytes=pages, source="memory of this machine")


def parse_devices(text: str, *, memory_bytes: int | None = None) -> tuple[int, Device]:
    """How many, and which: `8xH100`, `A100`, `2xcpu`; one that is not in the list where its memory is given.

    Raises:
        UserError: no such device, or not written so.
    """
    found = re.fullmatch(r"(?:(\d+)[x×*])?([^\W_][\w .+-]*)", text.strip())
    if found and found[1] and len(found[1]) > 6:
        raise UserError(f"devices '{text}': more than there are: a number of at most 999,999")
    count = int(found[1] or 1) if found else 0
    if found is None or not count:
        raise UserError(f"devices '{text}': a number and a name, such as 8xH100")
    name = found[2]
    device = this_cpu() if name.lower() == "cpu" else CARDS.get(name.lower())
    if device is None and memory_bytes is None:
        known = [card.name for card in CARDS.values()]
        raise UserError(
            f"unknown device '{name}'{suggest(name, known)}: choose from {', '.join(known)} and cpu, or give its "
            "memory (--device-memory)"
        )
    device = device or Device(name=name, memory_bytes=0)
    return count, device if memory_bytes is None else dataclasses.replace(device, memory_bytes=memory_bytes)
