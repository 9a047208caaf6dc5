"""The front end under TorchServe: request -> options and image -> defense -> JSON verdict."""
