"""What answers behind the door: an engine in this process, or TorchServe."""
