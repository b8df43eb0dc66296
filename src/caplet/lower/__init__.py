"""From a float model and a plan to the integer Program that ships."""

from caplet.lower.handlers import lower

__all__ = ["lower"]
