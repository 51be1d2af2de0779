"""DVC as a subprocess."""
