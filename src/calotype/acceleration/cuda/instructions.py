"""The text of Hopper's matrix instructions, whose operands are too many to write out."""

from __future__ import annotations


def products(width: int, kind: str) -> str:
    """Functions that add a warpgroup's product, (64, 16) times (16, width), to its sums.

    ``product_WIDTH(sums, left, right, add)`` has both operands beside the processor, described by :c:`described`;
    ``product_of_registers_WIDTH(sums, a, right, add)`` has the left one in four registers of each thread. With ``add``
    0 what the sums held is forgotten. Rows of the right operand are ``width`` columns' 16 elements; of
    ``…_turned_WIDTH`` 16 rows of ``width`` elements.
    """
    count = width // 2
    sums = ", ".join(f"%{i}" for i in range(count))
    outs = ", ".join(f'"+f"(d[{i}])' for i in range(count))
    registers = ", ".join(f"%{count + i}" for i in range(4))
    function = "__device__ __forceinline__ void"
    shape = f"wgmma.mma_async.sync.aligned.m64n{width}k16.f32.{kind}.{kind}"
    text = []
    for turned in (0, 1):
        suffix = f"turned_{width}" if turned else str(width)
        text.append(f"""
{function} product_{suffix}(float (&d)[{count}], uint64 left, uint64 right, int add) {{
  asm volatile("{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{count + 2}, 0;\\n"
    "{shape} {{{sums}}}, %{count}, %{count + 1}, p, 1, 1, 0, {turned};\\n}}\\n"
    : {outs} : "l"(left), "l"(right), "r"(add));
}}
{function} product_of_registers_{suffix}(
    float (&d)[{count}], const uint32 (&a)[4], uint64 right, int add) {{
  asm volatile("{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{count + 5}, 0;\\n"
    "{shape} {{{sums}}}, {{{registers}}}, %{count + 4}, p, 1, 1, {turned};\\n}}\\n"
    : {outs} : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(right), "r"(add));
}}
""")
    return "".join(text)
