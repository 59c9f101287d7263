"""The FME gateway: flag decisions, visitor facts and durable events for VWO/Wingify SDKs."""

__version__ = "0.1.0"
