"""Boxes: the one angle convention, overlaps, suppression, RoIAlign, coders, assignment. Plain torch, CPU and CUDA."""
