"""What a server is told by its operator."""
