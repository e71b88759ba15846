"""The label space of the procedural scenes: mask ids, their colours, and the words people use for them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CLASSES: tuple[str, ...] = (
    "background",  # grass, bare soil, sand and everything not named below
    "water",
    "road",  # every paved or built surface at ground level: roads, parking lots, aprons, runways, quays, yards
    "field",  # cropland
    "forest",  # every tree crown, in a forest or alone
    "building",
    "ship",
    "aircraft",
    "vehicle",
    "tank",
    "court",  # sports courts and pitches
)

BACKGROUND, WATER, ROAD, FIELD, FOREST, BUILDING, SHIP, AIRCRAFT, VEHICLE, TANK, COURT = range(len(CLASSES))

PALETTE: NDArray[np.uint8] = np.array(
    [
        (214, 206, 186),
        (54, 120, 196),
        (128, 128, 132),
        (226, 196, 84),
        (52, 128, 66),
        (206, 76, 62),
        (242, 242, 246),
        (248, 140, 40),
        (150, 62, 160),
        (76, 208, 210),
        (166, 224, 96),
    ],
    dtype=np.uint8,
)
PALETTE.setflags(write=False)

# Categories with instances (boxes), in mask order.
CATEGORIES: tuple[str, ...] = CLASSES[BUILDING:]

# What a change of structure is made of; crops, trees, water and things that move are not structure.
STRUCTURES: frozenset[int] = frozenset((ROAD, BUILDING, TANK, COURT))
