"""Procedural overhead scenes: images, masks, boxes, change pairs and instructions with no licence attached.

A scene is a pure function of (seed, index, config). A scene graph is laid out in metres by theme, drawn once as a map of
shapes, and seen from there in every modality: the same land, the same objects, the same annotations in the optical and
the radar view. Every scene also exists on another date, with another season, light and traffic, which gives change pairs.

    scene = draw_scene(seed=0, index=7, config=SceneConfig(size=128))
    scene.image, scene.mask, scene.instances
"""

from __future__ import annotations

from vitp.demo.classes import CATEGORIES, CLASSES, PALETTE
from vitp.demo.dataset import DatasetFiles, PairFiles, write_dataset, write_pairs
from vitp.demo.instances import Instance
from vitp.demo.questions import instructions
from vitp.demo.render import Scene, SceneConfig, ScenePair, draw_pair, draw_scene, radar_intensity, scene_theme
from vitp.demo.style import SEASONS
from vitp.demo.themes import THEMES

__all__ = [
    "CATEGORIES",
    "CLASSES",
    "PALETTE",
    "SEASONS",
    "THEMES",
    "DatasetFiles",
    "Instance",
    "PairFiles",
    "Scene",
    "SceneConfig",
    "ScenePair",
    "draw_pair",
    "draw_scene",
    "instructions",
    "radar_intensity",
    "scene_theme",
    "write_dataset",
    "write_pairs",
]
