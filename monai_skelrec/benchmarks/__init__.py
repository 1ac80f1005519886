"""What the parts of the package cost and gain, measured beside what they replace; each is run by a bundle config."""

from __future__ import annotations
