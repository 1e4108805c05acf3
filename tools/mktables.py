#!/usr/bin/env python3
"""Writes src/utf8_tables.h: the general category of every code point, as a three-stage table.

    pip install unicodedata2==16.0.0 && python3 tools/mktables.py > src/utf8_tables.h

The version is that of the reference tokenizers: the regular expressions of the `tokenizers` package
0.23.3 (Oniguruma) classify every code point by Unicode 16.0.0, and so must we. Python's own
unicodedata lags behind, hence the backport package of the same interface.
"""
import sys

import unicodedata2 as ucd

UNICODE = "16.0.0"
N_CODE_POINTS = 0x110000

# The order is that of the enum in src/utf8.c. "Cw" is ours: the control characters that are White_Space;
# with it every class a pre-tokenizer asks for is a set of categories.
CATEGORIES = ("Cn Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So "
              "Zs Zl Zp Cc Cf Cs Co Cw").split()
WHITE_SPACE_CONTROLS = set(range(0x09, 0x0E)) | {0x85}


def category(cp):
    return CATEGORIES.index("Cw" if cp in WHITE_SPACE_CONTROLS else ucd.category(chr(cp)))


def stage(values, shift):
    """The distinct blocks of 2**shift values in order of appearance, and the block of each index."""
    blocks, index = {}, []
    for at in range(0, len(values), 1 << shift):
        block = tuple(values[at:at + (1 << shift)])
        index.append(blocks.setdefault(block, len(blocks)))
    return [v for block in blocks for v in block], index


def three_stages(values, low, middle):
    """Leaves of 2**low values, runs of 2**middle leaf numbers, and the run of each index; and the bytes."""
    leaves, numbers = stage(values, low)
    runs, top = stage(numbers, middle)
    return leaves, runs, top, len(leaves) + 2 * len(runs) + len(top)


def array(name, values, kind="char"):
    lines, line = [], "   "
    for v in values:
        if len(line) + len(str(v)) + 2 > 100:
            lines.append(line)
            line = "   "
        line += f" {v},"
    lines.append(line)
    body = "\n".join(lines)
    return f"static const unsigned {kind} {name}[{len(values)}] = {{\n{body}\n}};\n"


def main():
    if ucd.unidata_version != UNICODE:
        sys.exit(f"mktables: Unicode {ucd.unidata_version} found, {UNICODE} wanted")
    values = [category(cp) for cp in range(N_CODE_POINTS)]
    # The smallest table; runs are numbered by bytes, leaves by 16 bits.
    size, low, middle = min((t[3], lo, mid) for lo in range(3, 8) for mid in range(3, 8)
                            for t in [three_stages(values, lo, mid)] if max(t[2]) < 256)
    leaves, runs, top, _ = three_stages(values, low, middle)
    print(f"""\
/* utf8_tables.h - the general category of every code point. Written by tools/mktables.py; do not edit.
 * Unicode {UNICODE}, {size} bytes, in three stages: a leaf holds {1 << low} categories, a run {1 << middle} leaves. */
#ifndef DLM_UTF8_TABLES_H
#define DLM_UTF8_TABLES_H

#define UTF8_UNICODE_VERSION "{UNICODE}"
#define UTF8_LEAF_SHIFT {low}
#define UTF8_RUN_SHIFT {middle}

{array("utf8_table_top", top)}
{array("utf8_table_runs", runs, "short")}
{array("utf8_table_leaves", leaves)}
#endif""")


if __name__ == "__main__":
    main()
