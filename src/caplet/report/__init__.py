"""Tables and pictures from saved run records; never from models."""
