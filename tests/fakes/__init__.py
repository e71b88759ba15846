"""Miniatures of the data sets recipes fine-tune on, each in the exact layout it is distributed in: a few small pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.fakes.change import levir_cd, s2looking, svcd, whu_cd
from tests.fakes.detection import OBJECTS
from tests.fakes.medical import amos2022, brats2021, busi, covid_qu_ex
from tests.fakes.scenes import ade20k, isaid, loveda, oam_buildings, ssdd, uavid

FAKES: dict[str, Callable[[Path], Path]] = {
    "isaid": isaid,
    "loveda": loveda,
    "uavid": uavid,
    "ssdd": ssdd,
    "ade20k": ade20k,
    "svcd": svcd,
    "whu_cd": whu_cd,
    "levir_cd": levir_cd,
    "s2looking": s2looking,
    "amos2022": amos2022,
    "brats2021": brats2021,
    "covid_qu_ex": covid_qu_ex,
    "busi": busi,  # these two are no benchmarks of the paper, but have recipes
    "oam_buildings": oam_buildings,
    **OBJECTS,
    "ssdd_detection": ssdd,  # the same files, read as instances
}
