"""rondevud: durable WebRTC data channels for every program of a machine."""

from rondevu_client import __version__

__all__ = ["__version__"]
