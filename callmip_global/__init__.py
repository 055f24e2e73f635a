"""callmip-global: post-calibration global runs for CalLMIP, from one YAML file to scores."""

__version__ = "0.1.0"
