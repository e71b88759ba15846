"""Sweeps: which runs a grid stands for, what they are worth downstream, and their tables and charts."""
