"""Which numbers: plans, formats, calibration, units, memory accounting, target hardware."""
