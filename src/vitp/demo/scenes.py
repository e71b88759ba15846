"""Procedural overhead scenes: images, masks, boxes, change pairs and instructions with no licence attached.

A scene is a pure function of (seed, index, config). A scene graph is laid out in metres by theme, drawn once as a map of
shapes, and seen from there in every modality: the same land, the same objects, the same annotations in the optical and
the radar view. Every scene also exists on other dates, with another season, light and traffic, which gives change pairs.

    scene = draw_scene(seed=0, index=7, config=SceneConfig(size=128))
    scene.image, scene.mask, scene.instances
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydantic import Field, field_validator

from vitp.config import Config
from vitp.demo.canvas import Canvas
from vitp.demo.classes import CATEGORIES, CLASSES, PALETTE
from vitp.demo.dataset import DatasetFiles, write_dataset, write_pairs
from vitp.demo.instances import Instance, annotate
from vitp.demo.keys import Dice, Stream, generator
from vitp.demo.paint import Drawn, draw_graph, footprints, present
from vitp.demo.questions import instructions
from vitp.demo.sar import backscatter, draw_look, quantise, speckle
from vitp.demo.site import Graph, Point
from vitp.demo.style import Land, Season, draw_land, draw_style
from vitp.demo.surfaces import surface_paint
from vitp.demo.terrain import Floats, Ground, class_mask, draw_ground, render_optical
from vitp.demo.themes import THEMES, draw_gsd, lay_out
