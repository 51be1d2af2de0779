"""Figures of speed: each module runs us and a peer side by side and prints the ratio."""
