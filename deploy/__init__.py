"""Starting and stopping the server on one machine: see `deploy.serve`."""
