"""From training runs to a bundle, and from a bundle to a TorchServe archive."""
