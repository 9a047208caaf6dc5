"""A writer of Qt resource files, from their description in metastable.training.rcc."""

import struct
import zlib


def packed(files: dict[str, bytes], version: int = 3, compress: bool = False) -> bytes:
    """Files by path as the bytes of an .rcc file; every folder has one or more children."""
    tree: dict = {}
    for path, data in files.items():
        *folders, name = path.split("/")
        at = tree
        for folder in folders:
            at = at.setdefault(folder, {})
        at[name] = data
    names, data, nodes = b"", b"", [("", tree)]
    rows = []
    for name, value in nodes:  # breadth first: the children of a folder lie side by side
        at = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        if isinstance(value, dict):
            rows.append((at, 2, len(value), len(nodes)))
            nodes += list(value.items())
            continue
        content = struct.pack(">I", len(value)) + zlib.compress(value) if compress else value
        rows.append((at, 1 if compress else 0, 0, len(data)))
        data += struct.pack(">I", len(content)) + content
    time = b"" if version == 1 else bytes(8)
    table = b"".join(struct.pack(">IHII", *row) + time for row in rows)
    head = 20 if version < 3 else 24
    offsets = (head, head + len(table), head + len(table) + len(data))
    flags = b"" if version < 3 else bytes(4)
    return struct.pack(">4s4I", b"qres", version, *offsets) + flags + table + data + names
