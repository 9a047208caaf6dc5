"""Attack sets against a live server: latency, accuracy and detection from the same timed run.

Talks to the server over HTTP only.  The library serves to make attack sets and, for the gallery, to
show what purification does to an image, because a server does not hand purified images out.
"""
