"""Labelled images for the tasks after pretraining."""
