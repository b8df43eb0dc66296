"""Benchmarks: tables of papers redone, the speed of every engine, two models side by side."""
