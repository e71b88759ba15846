"""Trained models on images of any size: windows, blending, and files that keep their place on the ground or in the body."""
