"""The instruction data: reading, checking, tiling, templating, mixing and packing it."""
