"""The HTTP server: what is read, refused and answered before an engine sees anything."""
