"""Intervals, calibration, agreement and fits: numpy in, numbers out."""
