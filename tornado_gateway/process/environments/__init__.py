"""The parts of one environment, made from its configuration."""
